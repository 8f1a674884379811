//! A pipe into which LMDB writes and whose other end may stop it.
//!
//! Closing the reading end is no way to stop LMDB: its writing thread then waits for a SIGPIPE, which never comes on systems
//! that discard it for a process that ignores it, as Rust programs do. So the writing end is told not to block, and is read
//! more slowly than it is filled: LMDB's next write finds no room, which is an error like any other, and the copy ends.

use std::fs::File;
use std::io::{self, Read};

#[cfg(unix)]
pub(crate) use unix::{Source, pipe};

#[cfg(not(unix))]
pub(crate) use other::{Source, pipe};

#[cfg(unix)]
mod unix {
    use std::net::Shutdown;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    use super::{File, Read, io};

    /// Where what was written can be read. Dropping it stops the writer.
    pub(crate) struct Source {
        reading: UnixStream,
        /// The writer's end as well.
        writing: UnixStream,
    }

    /// Where to write. Dropping it is the end of what can be read.
    pub(crate) struct Sink {
        stream: UnixStream,
        file: File,
    }

    pub(crate) fn pipe() -> io::Result<(Source, Sink)> {
        let (reading, stream) = UnixStream::pair()?;
        let writing = stream.try_clone()?;
        let file = File::from(OwnedFd::from(stream.try_clone()?));
        Ok((Source { reading, writing }, Sink { stream, file }))
    }

    impl Read for Source {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.reading.read(buffer)
        }
    }

    impl Drop for Source {
        fn drop(&mut self) {
            let _ = self.writing.set_nonblocking(true); // if that fails, all of it is read
            let mut rest = vec![0; 64 << 10];
            loop {
                match self.reading.read(&mut rest) {
                    Ok(0) => return,
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                    // The rest of a write that was already waiting for room.
                    _ => thread::sleep(Duration::from_millis(1)),
                }
            }
        }
    }

    impl Sink {
        pub(crate) fn file(&mut self) -> &mut File {
            &mut self.file
        }
    }

    impl Drop for Sink {
        fn drop(&mut self) {
            let _ = self.stream.shutdown(Shutdown::Write); // the other end has a handle to it, so closing would not do
        }
    }
}

/// Where there is no SIGPIPE, closing the reading end is all it takes.
#[cfg(not(unix))]
mod other {
    use std::io::PipeReader;
    use std::os::windows::io::OwnedHandle;

    use super::{File, Read, io};

    pub(crate) struct Source(PipeReader);

    pub(crate) struct Sink(File);

    pub(crate) fn pipe() -> io::Result<(Source, Sink)> {
        let (reading, writing) = io::pipe()?;
        Ok((Source(reading), Sink(File::from(OwnedHandle::from(writing)))))
    }

    impl Read for Source {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Sink {
        pub(crate) fn file(&mut self) -> &mut File {
            &mut self.0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_written_can_be_read_to_its_end() {
        let (mut source, mut sink) = pipe().expect("pipe");
        let written = vec![7; 3 << 20];
        let read = thread::scope(|scope| {
            scope.spawn(|| {
                sink.file().write_all(&written).expect("written");
                drop(sink);
            });
            let mut read = Vec::new();
            source.read_to_end(&mut read).expect("read");
            read
        });
        assert_eq!(read, written);
    }

    #[test]
    fn a_writer_is_stopped_by_an_error_of_its_next_write() {
        let (mut source, mut sink) = pipe().expect("pipe");
        let writer = thread::spawn(move || {
            // As large as LMDB's largest write: it waits for room in the middle of one.
            loop {
                if let Err(error) = sink.file().write_all(&vec![7; 16 << 20]) {
                    return error.kind();
                }
            }
        });
        source.read_exact(&mut [0; 1000]).expect("read");
        drop(source);
        let stopped = writer.join().expect("no panic");
        assert!(!cfg!(unix) || stopped == io::ErrorKind::WouldBlock, "{stopped}");
    }
}

//! Results on stdout: buffered, and silent when the reader has gone.
//!
//! A command that only prints is done then and ends. One that writes or verifies continues: its exit code matters more
//! than its output.

use std::fmt::Display;
use std::io::{self, ErrorKind, Stdout, Write};

use crate::failure::{Failure, escape_controls};

/// The approximate size of a write, large enough that the cost of system calls does not matter.
const PIECE: usize = 64 << 10;

/// Lines to be written to stdout. Lines that were not flushed may not be written.
pub(crate) struct Output<W = Stdout> {
    buffer: Vec<u8>,
    to: W,
    reader: Reader,
}

/// The importance of the output's reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// When it leaves, nothing is left to do.
    IsAllThereIs,
    /// It may leave.
    IsWelcome,
    HasLeft,
}

impl Output {
    /// For a command that only prints: it ends, with [`Failure::closed_pipe`], when its reader leaves.
    pub(crate) fn of_printing() -> Self {
        Output::new(io::stdout(), Reader::IsAllThereIs)
    }

    /// For a command that writes or verifies: it continues when its reader leaves.
    pub(crate) fn of_work() -> Self {
        Output::new(io::stdout(), Reader::IsWelcome)
    }
}

impl<W: Write> Output<W> {
    fn new(to: W, reader: Reader) -> Self {
        Output { buffer: Vec::with_capacity(2 * PIECE), to, reader }
    }

    /// Adds one line, which `write` writes into the buffer without the line break.
    pub(crate) fn line(&mut self, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<(), Failure> {
        write(&mut self.buffer).map_err(|error| failure(&error))?;
        self.buffer.push(b'\n');
        if self.buffer.len() >= PIECE {
            self.write_out()?;
        }
        Ok(())
    }

    /// Adds one line of text.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.line(|buffer| buffer.write_all(text.as_bytes()))
    }

    /// Adds a line `name: value`.
    pub(crate) fn field(&mut self, name: &str, value: impl Display) -> Result<(), Failure> {
        self.text(&escape_controls(&format!("{name}: {value}")))
    }

    /// Writes everything to the operating system.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.write_out()?;
        let flushed = self.to.flush();
        self.done(flushed)
    }

    fn write_out(&mut self) -> Result<(), Failure> {
        let written = match self.reader {
            Reader::HasLeft => Ok(()),
            _ => self.to.write_all(&self.buffer),
        };
        // Even after an error: nothing may be written twice.
        self.buffer.clear();
        self.done(written)
    }

    fn done(&mut self, written: io::Result<()>) -> Result<(), Failure> {
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe && self.reader != Reader::IsAllThereIs => {
                self.reader = Reader::HasLeft;
                Ok(())
            }
            written => written.map_err(|error| failure(&error)),
        }
    }
}

/// The failure to write to standard output.
pub(crate) fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::closed_pipe(),
        _ => Failure::io("write to standard output", error),
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use super::*;

    struct Refuses(ErrorKind);

    impl Write for Refuses {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_when_flushed() {
        let mut written = Vec::new();
        let mut output = Output::new(&mut written, Reader::IsAllThereIs);
        output.text("one").expect("buffered");
        output.text("two").expect("buffered");
        output.flush().expect("written");
        assert_eq!(written, b"one\ntwo\n");
    }

    #[test]
    fn a_closed_pipe_ends_what_only_prints_quietly() {
        let mut output = Output::new(Refuses(ErrorKind::BrokenPipe), Reader::IsAllThereIs);
        output.text("one").expect("buffered");
        let failure = output.flush().expect_err("closed");
        assert_eq!(failure.code(), "closed_pipe");
        assert_eq!(failure.report(), ExitCode::SUCCESS);
    }

    #[test]
    fn work_goes_on_when_its_reader_has_left() {
        let mut output = Output::new(Refuses(ErrorKind::BrokenPipe), Reader::IsWelcome);
        for _ in 0..3 {
            output.text(&"long".repeat(PIECE)).expect("nobody reads it");
            output.flush().expect("nobody reads it");
        }
    }

    #[test]
    fn a_full_disk_is_an_error_whatever_the_command() {
        for reader in [Reader::IsAllThereIs, Reader::IsWelcome] {
            let mut output = Output::new(Refuses(ErrorKind::StorageFull), reader);
            output.text("one").expect("buffered");
            assert_eq!(output.flush().expect_err("full").code(), "io", "{reader:?}");
        }
    }
}

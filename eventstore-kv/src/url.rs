use std::path::PathBuf;
use std::str::FromStr;

use bytesize::ByteSize;
use eventstore_api::{Error, Result};

/// A store's address: `scheme:path?option=value&option=value`.
///
/// The path is taken literally, up to the first `?`; nothing is percent-decoded. For a path that contains a `?`, use
/// the backend's typed options.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreUrl {
    /// Everything before the first `:`, which names the backend.
    pub scheme: String,
    /// The path, empty if there is none.
    pub path: PathBuf,
    /// The options in the order of the URL.
    pub options: Vec<(String, String)>,
}

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidOption { option: "store".to_owned(), reason };
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(invalid(format!("{text:?} is not a store; write it as scheme:path, such as lmdb:./data")));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.starts_with("//") {
            let name = path.trim_start_matches('/');
            return Err(invalid(format!(
                "\"{scheme}:{path}\" begins with //; write {scheme}:./{name} for a relative path, {scheme}:/{name} for an \
                 absolute one"
            )));
        }
        if path.starts_with("~/") {
            return Err(invalid(format!("~ in \"{scheme}:{path}\" is not expanded; write the path out")));
        }
        let mut options: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(invalid(format!("{pair:?} is not an option; write it as name=value")));
            };
            if options.iter().any(|(earlier, _)| earlier == name) {
                return Err(invalid(format!("the option {name} is given twice")));
            }
            options.push((name.to_owned(), value.to_owned()));
        }
        Ok(StoreUrl { scheme: scheme.to_owned(), path: path.into(), options })
    }
}

/// The options of a URL while they are taken one by one. Options left at the end are unknown and rejected.
#[derive(Debug)]
pub struct UrlOptions {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl UrlOptions {
    /// Starts with all options of the URL.
    #[must_use]
    pub fn new(url: &StoreUrl) -> Self {
        UrlOptions { left: url.options.clone(), known: Vec::new() }
    }

    fn take<T>(
        &mut self,
        name: &'static str,
        target: &mut T,
        parse: impl FnOnce(&str) -> std::result::Result<T, String>,
    ) -> Result<()> {
        self.known.push(name);
        if let Some(at) = self.left.iter().position(|(left, _)| left == name) {
            let (_, value) = self.left.remove(at);
            *target = parse(&value).map_err(|reason| Error::InvalidOption { option: name.to_owned(), reason })?;
        }
        Ok(())
    }

    /// Takes an option whose type parses itself and returns an [`Error::InvalidOption`] if that fails.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`].
    pub fn take_parsed<T: FromStr<Err = Error>>(&mut self, name: &'static str, target: &mut T) -> Result<()> {
        self.take(name, target, |value| {
            value.parse().map_err(|error| match error {
                Error::InvalidOption { reason, .. } => reason,
                other => other.to_string(),
            })
        })
    }

    /// Takes a whole number.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`].
    pub fn take_number<T: FromStr>(&mut self, name: &'static str, target: &mut T) -> Result<()> {
        self.take(name, target, |value| {
            value.parse().map_err(|_| format!("{value:?} is not a whole number in its range"))
        })
    }

    /// Takes `true` or `false`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`].
    pub fn take_flag(&mut self, name: &'static str, target: &mut bool) -> Result<()> {
        self.take(name, target, |value| value.parse().map_err(|_| format!("{value:?} is not one of true, false")))
    }

    /// Takes a text unchanged.
    ///
    /// # Errors
    ///
    /// None.
    pub fn take_text(&mut self, name: &'static str, target: &mut String) -> Result<()> {
        self.take(name, target, |value| Ok(value.to_owned()))
    }

    /// Takes a number of bytes, such as `4096`, `64KiB` or `1GiB`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`].
    pub fn take_bytes(&mut self, name: &'static str, target: &mut usize) -> Result<()> {
        self.take(name, target, |value| {
            let size: ByteSize = value.parse().map_err(|_| format!("{value:?} is not a size such as 64MiB"))?;
            usize::try_from(size.as_u64()).map_err(|_| format!("{value} is more than this machine can address"))
        })
    }

    /// Checks that no option is left.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidOption`] for an option that was not taken, with the names of the existing ones.
    pub fn finish(self) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some((unknown, _)) => Err(Error::InvalidOption {
                option: unknown.clone(),
                reason: match self.known.as_slice() {
                    [] => "this backend has no options".to_owned(),
                    known => format!("this backend has no such option; it has {}", known.join(", ")),
                },
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compression, StoreOptions};

    fn url(text: &str) -> StoreUrl {
        text.parse().expect(text)
    }

    #[test]
    fn a_url_is_scheme_path_and_options() {
        assert_eq!(url("memory:"), StoreUrl { scheme: "memory".into(), path: "".into(), options: vec![] });
        let full = url("lmdb:/da ta/100%/é:x?map_size=1GiB&max_readers=9");
        assert_eq!(full.path, PathBuf::from("/da ta/100%/é:x"));
        assert_eq!(full.options, [("map_size".into(), "1GiB".into()), ("max_readers".into(), "9".into())]);
        for text in ["", "data", "lmdb:./d?map_size", "lmdb:./d?a=1&a=2", "lmdb://d", "lmdb:~/d"] {
            assert!(matches!(text.parse::<StoreUrl>(), Err(Error::InvalidOption { .. })), "{text:?}");
        }
    }

    #[test]
    fn options_are_taken_and_unknown_ones_refused_by_name() {
        let mut options =
            UrlOptions::new(&url("x:?durability=buffered&queue_bytes=16MiB&queue_requests=7&compression=zstd"));
        let mut store = StoreOptions::default();
        store.take_from(&mut options).expect("valid");
        options.finish().expect("all known");
        assert_eq!((store.queue_bytes, store.queue_requests), (16 << 20, 7));
        assert_eq!((store.compression, store.compression.to_string().as_str()), (Compression::Zstd, "zstd"));

        for (query, named) in [
            ("queue_bytes=lots", "queue_bytes"),
            ("queue_requests=-1", "queue_requests"),
            ("durability=maybe", "durability"),
            ("compression=lz4", "compression"),
        ] {
            let mut options = UrlOptions::new(&url(&format!("x:?{query}")));
            let error = StoreOptions::default().take_from(&mut options).expect_err(query);
            assert!(matches!(error, Error::InvalidOption { option, .. } if option == named), "{query}");
        }
        let unknown = UrlOptions::new(&url("x:?colour=red")).finish();
        assert!(matches!(unknown, Err(Error::InvalidOption { option, .. }) if option == "colour"));
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let options = StoreOptions { queue_requests: 0, ..StoreOptions::default() };
        assert!(matches!(options.validate(), Err(Error::InvalidOption { option, .. }) if option == "queue_requests"));
    }
}

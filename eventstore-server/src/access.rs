//! Access control: tokens with rights, and checks of requests from browsers.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, RwLock};

use axum::http::{HeaderMap, Uri, header};
use eventstore_wire::Problem;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, Refused};

/// A right to a store. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// Read events and statistics.
    Read,
    /// Append events.
    Write,
    /// Verify, collect garbage, back up.
    Admin,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Right::Read => "read",
            Right::Write => "write",
            Right::Admin => "admin",
        })
    }
}

/// The tokens that a server accepts, with their rights.
///
/// The text form has one token per line: the token; its rights, separated by commas (`read`, `write`, `admin`, each of
/// which includes those before it, and `create`); and the names of the stores, where a trailing `*` matches every name
/// with that prefix. A line that begins with `#` is a comment.
///
/// ```
/// use eventstore_server::Tokens;
///
/// let tokens: Tokens = "6fe1c9a07b0f4f0e9a55b7e2d3c41a90 write,create tenant-*".parse()?;
/// # Ok::<(), String>(())
/// ```
///
/// Clones share the tokens: [`replace`](Tokens::replace) changes them for a running server.
#[derive(Clone, Default)]
pub struct Tokens(Arc<RwLock<Vec<Token>>>);

#[derive(Clone)]
struct Token {
    /// A hash of the token, so that a comparison takes constant time.
    hash: [u8; 32],
    right: Option<Right>,
    may_create: bool,
    stores: Vec<String>,
    /// Cancelled when the token was removed or its rights changed. This ends its open streams and sessions.
    gone: CancellationToken,
}

/// Shorter tokens can be guessed.
const LEAST_LEN: usize = 16;

impl Tokens {
    /// Reads a token file.
    ///
    /// # Errors
    ///
    /// A message for people, with the path and the line, but without any token.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        text.parse().map_err(|reason| format!("{}: {reason}", path.display()))
    }

    /// Replaces the tokens, in this value and all its clones, for all further requests. Open streams and sessions of
    /// appends end with `unauthorized` if the line of their token no longer exists in exactly this form. Other running
    /// requests are finished.
    ///
    /// ```
    /// # use std::path::Path;
    /// # use eventstore_server::Tokens;
    /// fn reread(tokens: &Tokens, path: &Path) -> Result<(), String> {
    ///     tokens.replace(Tokens::from_file(path)?); // a file that cannot be read changes nothing
    ///     Ok(())
    /// }
    /// ```
    pub fn replace(&self, with: Tokens) {
        let mut new = with.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        let mut all = self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        for token in &mut new {
            // An unchanged token stays valid for what was opened with it.
            let old = all.iter().find(|old| old.is_same(token));
            token.gone = old.map_or_else(CancellationToken::new, |old| old.gone.clone());
        }
        let old = std::mem::replace(&mut *all, new);
        for gone in old.iter().filter(|old| !all.iter().any(|new| new.is_same(old))) {
            gone.gone.cancel();
        }
    }

    /// The token with this text. It is compared with all tokens, each in constant time.
    fn find(&self, text: &str) -> Option<Token> {
        let hash: [u8; 32] = Sha256::digest(text).into();
        let all = self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let found = all.iter().fold(None, |found, token| match bool::from(token.hash.ct_eq(&hash)) {
            true => Some(token),
            false => found,
        });
        found.cloned()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).len())
    }
}

impl std::str::FromStr for Tokens {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let tokens = lines
            .map(|(number, line)| Token::read(line).map_err(|reason| format!("line {}: {reason}", number + 1)))
            .collect::<Result<Vec<_>, _>>()?;
        if tokens.is_empty() {
            return Err("it has no token; write one a line, such as `TOKEN read *`".to_owned());
        }
        let mut hashes: Vec<_> = tokens.iter().map(|token| token.hash).collect();
        hashes.sort_unstable();
        if hashes.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("it has a token twice; keep one line of each".to_owned());
        }
        Ok(Tokens(Arc::new(RwLock::new(tokens))))
    }
}

impl Token {
    fn read(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let (Some(text), Some(rights)) = (words.next(), words.next()) else {
            return Err("it has to have a token, its rights, and the names of its stores".to_owned());
        };
        if text.len() < LEAST_LEN {
            return Err(format!(
                "the token has less than {LEAST_LEN} characters; make one with `openssl rand -hex 16`"
            ));
        }
        let stores: Vec<_> = words.map(str::to_owned).collect();
        if stores.is_empty() {
            return Err("it names no store; write * for all".to_owned());
        }
        let is_odd = |name: &String| name.strip_suffix('*').unwrap_or(name).contains(['*', ',']);
        if stores.iter().any(is_odd) {
            return Err(
                "a name of a store has a comma, or a * that is not at its end; separate names by blanks".to_owned()
            );
        }
        let (mut right, mut may_create) = (None, false);
        for word in rights.split(',') {
            right = right.max(match word {
                "read" => Some(Right::Read),
                "write" => Some(Right::Write),
                "admin" => Some(Right::Admin),
                "create" => {
                    may_create = true;
                    None
                }
                // The error must not contain the word: it may be a token if a space is missing after it.
                _ => return Err("a right is not one of read, write, create, admin".to_owned()),
            });
        }
        let gone = CancellationToken::new();
        Ok(Token { hash: Sha256::digest(text).into(), right, may_create, stores, gone })
    }

    /// Whether both are the same token with the same rights.
    fn is_same(&self, other: &Token) -> bool {
        let good_for = |token: &Token| (token.hash, token.right, token.may_create);
        good_for(self) == good_for(other) && self.stores == other.stores
    }

    fn is_for(&self, store: &str) -> bool {
        self.stores.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(beginning) => store.starts_with(beginning),
            None => pattern == store,
        })
    }
}

/// Who may access a server.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// Everybody who can reach it: the program that embeds the router controls access.
    Everybody,
    /// Everybody on this machine, except pages of other origins in a browser.
    ThisMachine,
    /// Requests with a token.
    Tokens(Tokens),
}

/// The rights of a request to a store.
#[derive(Clone, Debug)]
pub(crate) struct Allowed {
    pub(crate) right: Option<Right>,
    pub(crate) may_create: bool,
    pub(crate) gone: Gone,
}

/// Signals a stream or a session that its token was removed; never if there are no tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gone(Option<CancellationToken>);

impl Gone {
    /// Waits until the token is removed.
    pub(crate) async fn wait(&self) {
        match &self.0 {
            Some(gone) => gone.cancelled().await,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.0.as_ref().is_some_and(CancellationToken::is_cancelled)
    }
}

/// The reason that streams and sessions give when their token is removed.
pub(crate) const GONE: &str = "the token was removed or changed; reconnect with a valid one";

pub(crate) fn gone() -> Refused {
    Problem::new(401, "unauthorized", GONE).into()
}

impl Access {
    /// The rights of a request with these headers to the store with this name; `""` is the only store of a server.
    pub(crate) fn allowed(&self, headers: &HeaderMap, store: &str) -> Answer<Allowed> {
        let Access::Tokens(tokens) = self else {
            return Ok(Allowed { right: Some(Right::Admin), may_create: true, gone: Gone::default() });
        };
        let unauthorized = |detail: &str| Refused::from(Problem::new(401, "unauthorized", detail));
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Err(unauthorized("a token is missing; send Authorization: Bearer TOKEN"));
        };
        let text = value.to_str().ok().and_then(|value| value.split_once(' '));
        let Some((_, text)) = text.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return Err(unauthorized("the Authorization header is not of the form Bearer TOKEN"));
        };
        let token = tokens.find(text.trim()).ok_or_else(|| unauthorized("the token is unknown"))?;
        let is_for = token.is_for(store);
        let (right, may_create) = (token.right.filter(|_| is_for), token.may_create && is_for);
        Ok(Allowed { right, may_create, gone: Gone(Some(token.gone)) })
    }

    /// Refuses requests that a browser sends for a page of another origin. Without tokens, a browser on this machine
    /// has access, whatever page it shows.
    pub(crate) fn check_origin(&self, uri: &Uri, headers: &HeaderMap) -> Answer<()> {
        if !matches!(self, Access::ThisMachine) {
            return Ok(());
        }
        let refused = |detail: &str| Err(Problem::new(403, "forbidden", detail).into());
        // HTTP/2 has it in the URI instead of the header. A request with two hosts could be interpreted in two ways.
        let mut hosts: Vec<Option<&str>> =
            headers.get_all(header::HOST).iter().map(|host| host.to_str().ok()).collect();
        hosts.extend(uri.authority().map(|authority| Some(authority.as_str())));
        hosts.dedup();
        let host = match hosts[..] {
            [host] => host,
            _ => None,
        };
        // Otherwise it is a name that a foreign name server resolves to this machine.
        if !host.is_some_and(is_loopback_name) {
            return refused(
                "a server without tokens answers only requests to localhost, 127.0.0.1 or [::1]; give it --token-file for others",
            );
        }
        for origin in headers.get_all(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let place = origin.split_once("://").map(|(_, place)| place);
            if place != host {
                return refused("a server without tokens answers no page of another origin; give it --token-file");
            }
        }
        // Browsers send some requests without an origin, such as those for images.
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        if matches!(site, Some(b"cross-site" | b"same-site"))
            && headers.get("sec-fetch-mode").is_none_or(|mode| mode != "navigate")
        {
            return refused("a server without tokens answers no page of another origin; give it --token-file");
        }
        Ok(())
    }
}

/// Whether this `Host` is a loopback name.
fn is_loopback_name(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) => (name, port.strip_prefix(':').unwrap_or(port)),
            None => return false,
        },
        None => host.rsplit_once(':').unwrap_or((host, "")),
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef-one";
    const TWO: &str = "0123456789abcdef-two";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn tokens_are_good_for_what_their_line_says() {
        let file = format!("# who\n\n{ONE} read *\n{TWO}  write,create  tenant-* orders\n");
        let access = Access::Tokens(file.parse().expect("valid"));
        let allowed = |token: &str, store| {
            let allowed = access.allowed(&headers(&[("authorization", &format!("Bearer {token}"))]), store);
            allowed.map(|allowed| (allowed.right, allowed.may_create)).map_err(|refused| refused.0.status)
        };
        assert_eq!(allowed(ONE, "any"), Ok((Some(Right::Read), false)));
        assert_eq!(allowed(ONE, ""), Ok((Some(Right::Read), false)));
        assert_eq!(allowed(TWO, "tenant-7"), Ok((Some(Right::Write), true)));
        assert_eq!(allowed(TWO, "orders"), Ok((Some(Right::Write), true)));
        for other in ["", "orders2", "tenant"] {
            assert_eq!(allowed(TWO, other), Ok((None, false)), "{other}");
        }
        for unknown in ["", "0123456789abcdef", "0123456789abcdef-on", "0123456789abcdef-onee"] {
            assert_eq!(allowed(unknown, "any"), Err(401), "{unknown}");
        }
        for header in ["", "Basic 0123456789abcdef-one", ONE] {
            assert_eq!(
                access
                    .allowed(&headers(&[("authorization", header)]), "any")
                    .map(drop)
                    .map_err(|refused| refused.0.status),
                Err(401)
            );
        }
        assert!(access.allowed(&headers(&[("authorization", &format!("bearer {ONE}"))]), "any").is_ok());
        assert_eq!(access.allowed(&HeaderMap::new(), "any").map(drop).map_err(|refused| refused.0.status), Err(401));
    }

    #[test]
    fn a_file_that_is_wrong_says_where_and_shows_no_token() {
        for (file, line) in [
            ("", "no token"),
            ("# nothing\n", "no token"),
            ("short read *", "line 1"),
            ("\n0123456789abcdef read", "line 2"),
            ("0123456789abcdef", "line 1"),
            ("0123456789abcdef reed *", "line 1"),
            ("read 0123456789abcdef *", "line 1"),
            ("0123456789abcdef read a,b", "line 1"),
            ("0123456789abcdef read a*b", "line 1"),
            ("0123456789abcdef read *\n0123456789abcdef write *", "twice"),
        ] {
            let error = file.parse::<Tokens>().expect_err(file);
            assert!(error.contains(line) && !error.contains("0123456789abcdef"), "{error}");
        }
        let tokens: Tokens = "0123456789abcdef read *".parse().expect("valid");
        assert!(!format!("{tokens:?}").contains("0123"));
    }

    #[test]
    fn pages_of_other_origins_are_refused_where_there_are_no_tokens() {
        let root = Uri::from_static("/");
        let check = |pairs: &[(&'static str, &str)]| Access::ThisMachine.check_origin(&root, &headers(pairs)).is_ok();
        let host = ("host", "127.0.0.1:7080");
        assert!(!check(&[]) && check(&[host]) && check(&[("host", "LOCALHOST")]) && check(&[("host", "[::1]:80")]));
        assert!(check(&[host, ("origin", "http://127.0.0.1:7080"), ("sec-fetch-site", "same-origin")]));
        assert!(check(&[host, ("sec-fetch-site", "none")]));
        assert!(check(&[host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]), "a link");
        for (name, value) in [
            ("origin", "http://example.com"),
            ("origin", "http://127.0.0.1:8080"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert!(!check(&[host, (name, value)]), "{name}: {value}");
        }
        for name in [
            "example.com",
            "example.com:7080",
            "127.0.0.1.example.com",
            "localhost.example.com",
            "",
            "10.0.0.1:7080",
            "[::1].example.com",
            "[::1",
            "127.0.0.1:7080.example.com",
        ] {
            assert!(!check(&[("host", name)]), "{name}");
        }
        let of = |uri: &'static str, pairs: &[(&'static str, &str)]| {
            Access::ThisMachine.check_origin(&Uri::from_static(uri), &headers(pairs)).is_ok()
        };
        assert!(of("http://127.0.0.1:7080/latest", &[]) && of("http://127.0.0.1:7080/latest", &[host]));
        for (uri, pairs) in [
            ("http://example.com/latest", &[][..]),
            ("http://example.com/latest", &[host]),
            ("http://127.0.0.1:7080/latest", &[("host", "example.com")]),
        ] {
            assert!(!of(uri, pairs), "{uri} {pairs:?}");
        }
        for access in [Access::Everybody, Access::Tokens(Tokens::default())] {
            assert!(access.check_origin(&root, &headers(&[("host", "example.com"), ("origin", "null")])).is_ok());
        }
    }
}

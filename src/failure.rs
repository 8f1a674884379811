//! Failures of the command, and how they are reported: one line on stderr,
//! `error[code]: what happened, and what to do`.

use std::fmt::{self, Display, Write as _};
use std::io::{self, Write as _};
use std::process::ExitCode;

use eventstore::backend::Error;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

/// The command's own codes, in addition to those of [`Error::code`].
#[cfg(feature = "serve")]
const CANNOT_SERVE: &str = "cannot_serve";
const CLOSED_PIPE: &str = "closed_pipe";
const IO: &str = "io";
const MALFORMED_INPUT: &str = "malformed_input";
const USAGE: &str = "usage";
const WRONG_RESULT: &str = "wrong_result";

/// Why the command fails.
#[derive(Debug)]
pub(crate) struct Failure {
    code: &'static str,
    message: String,
}

impl Failure {
    /// The reader of the output has closed the pipe, as in `| head`. For a command that only prints, that is not an
    /// error.
    pub(crate) fn closed_pipe() -> Self {
        Failure { code: CLOSED_PIPE, message: String::new() }
    }

    /// Nobody can see the result: standard output was closed when the command started, as by `>&-`.
    pub(crate) fn closed_stdout() -> Self {
        let message = "standard output is closed; redirect it to a file, or to /dev/null to discard it";
        Failure { code: IO, message: message.to_owned() }
    }

    /// The request cannot be fulfilled as given.
    #[cfg(feature = "serve")]
    pub(crate) fn refused(reason: String) -> Self {
        Failure { code: CANNOT_SERVE, message: reason }
    }

    /// The operating system refused to `attempt`, a verb phrase such as `read orders.jsonl`.
    pub(crate) fn io(attempt: impl Display, error: &io::Error) -> Self {
        Failure { code: IO, message: format!("cannot {attempt}: {error}") }
    }

    /// The input is invalid: not UTF-8, not JSON, or not the JSON form of an event.
    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Failure { code: MALFORMED_INPUT, message: reason.into() }
    }

    /// The command line is invalid. The first paragraph of clap's text says why, and a tip what is similar.
    pub(crate) fn usage(error: &clap::Error) -> Self {
        let text = error.to_string();
        let lines: Vec<_> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        let reason = lines.join(" ");
        let reason = reason.strip_prefix("error: ").unwrap_or(&reason);
        let similar =
            text.lines().find_map(|line| line.trim().strip_prefix("tip: ")).filter(|tip| tip.contains("similar"));
        let similar = similar.map_or_else(String::new, |tip| format!("; {tip}"));
        Failure { code: USAGE, message: format!("{reason}{similar}; try 'eventstore --help'") }
    }

    /// A store returned something else than what was stored, so the measurements are invalid.
    pub(crate) fn wrong_result(what: impl Into<String>) -> Self {
        Failure { code: WRONG_RESULT, message: what.into() }
    }

    /// An error of a library, with this code and the command's own text.
    #[cfg(feature = "sync")]
    pub(crate) fn told(code: &'static str, message: String) -> Self {
        Failure { code, message }
    }

    /// An error with its own code.
    fn coded(code: &'static str, error: &dyn std::error::Error) -> Self {
        let message = with_causes(error);
        // Avoids repeating the code in the text, as in `error[unsupported]: unsupported: …`.
        let name = code.replace('_', " ");
        let rest = message.strip_prefix(&name).and_then(|rest| rest.strip_prefix(": "));
        Failure { code, message: rest.unwrap_or(&message).to_owned() }
    }

    /// Adds the place in the input.
    pub(crate) fn at(self, place: impl Display) -> Self {
        Failure { message: format!("{place}: {}", self.message), ..self }
    }

    /// Adds a note at the end.
    pub(crate) fn note(self, note: impl Display) -> Self {
        Failure { message: format!("{}; {note}", self.message), ..self }
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    #[cfg(test)]
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn is_closed_pipe(&self) -> bool {
        self.code == CLOSED_PIPE
    }

    pub(crate) fn is_malformed(&self) -> bool {
        self.code == MALFORMED_INPUT
    }

    /// Reports it on stderr and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self.code {
            CLOSED_PIPE => return ExitCode::SUCCESS,
            _ => tell(&self.to_string()),
        }
        match self.code {
            USAGE => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::coded(error.code(), &error)
    }
}

#[cfg(feature = "sync")]
impl From<synckit::Error> for Failure {
    fn from(error: synckit::Error) -> Self {
        Failure::coded(error.code(), &error)
    }
}

/// Writes one line to stderr, whatever the text contains.
pub(crate) fn tell(text: &str) {
    // If stderr is closed, nobody can be told.
    let _ = writeln!(io::stderr(), "{}", escape_controls(text));
}

/// Escapes characters that are invisible but change the meaning: control characters, and those that change the writing
/// direction, join, or break lines. So the text stays one line in its order, and cannot control a terminal.
pub(crate) fn escape_controls(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match is_control(character) {
            true => escaped.extend(character.escape_default()),
            false => escaped.push(character),
        }
    }
    escaped
}

fn is_control(character: char) -> bool {
    use GeneralCategory::{Control, Format, LineSeparator, ParagraphSeparator};
    let category = || character.general_category();
    !character.is_ascii_graphic() && matches!(category(), Control | Format | LineSeparator | ParagraphSeparator)
}

/// The error's text and, in brackets, causes that it does not mention.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            // Writing to a String does not fail.
            let _ = write!(text, " (cause: {more})");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let told = Failure::from(Error::engine("read a page", io::Error::other("the disk is gone")));
        assert_eq!(told.message(), "the engine failed to read a page (cause: the disk is gone)");
        let told = Failure::from(Error::Unsupported { what: "opening nope:".to_owned() });
        assert_eq!(told.to_string(), "error[unsupported]: opening nope:");
        let reason = "sync: EIO".to_owned();
        let told = Failure::from(Error::OutcomeUnknown { reason, source: Some("EIO".into()) });
        assert_eq!(told.message().matches("EIO").count(), 1, "{}", told.message());
    }

    #[test]
    fn places_come_first_and_notes_last() {
        let failure = Failure::malformed("not JSON").at("line 17").note("16 stored before");
        assert_eq!(failure.message(), "line 17: not JSON; 16 stored before");
        assert_eq!(failure.code(), "malformed_input");
    }

    #[test]
    fn controls_are_escaped() {
        assert_eq!(escape_controls("a\nb\r\u{1b}[2J\0é"), "a\\nb\\r\\u{1b}[2J\\u{0}é");
        // Bidirectional controls, joiners, invisible tags, a byte order mark, line breaks, C1 controls.
        for hidden in "\u{202a}\u{202e}\u{2066}\u{2069}\u{200e}\u{61c}\u{200b}\u{200d}\u{2060}\u{ad}\u{e0041}\u{feff}\u{2028}\u{2029}\u{85}\u{9b}".chars() {
            assert_eq!(escape_controls(&format!("a{hidden}b")), format!("a{}b", hidden.escape_unicode()));
        }
        let seen = "e\u{301} 漢字 \u{3000}ｆ עברית العربية 🦀 ~\u{a0}";
        assert_eq!(escape_controls(seen), seen);
    }
}

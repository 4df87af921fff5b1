//! What was written, and where: values of the file, of the environment and of flags.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::Setting;

/// Where something was written, as it is shown to the user. In the order of the file's lines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file, counted from 1; the column in characters.
    File {
        /// Which file.
        file: PathBuf,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// The file as a whole.
    WholeFile(PathBuf),
    /// In an environment variable.
    Environment(&'static str),
    /// As a flag, without the dashes.
    Flag(&'static str),
    /// Nowhere: it is the default, or missing.
    Nowhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Self::WholeFile(file) => write!(f, "{}", file.display()),
            Self::Environment(variable) => f.write_str(variable),
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Nowhere => f.write_str("default"),
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Of which key; empty if of none.
    pub key: String,
    /// What, and what to write instead.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.place != Place::Nowhere {
            write!(f, "{}: ", self.place)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// The text of the file, to say where something is.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    file: &'a Path,
    text: &'a str,
}

impl<'a> Text<'a> {
    /// Of a file.
    pub fn new(file: &'a Path, text: &'a str) -> Self {
        Self { file, text }
    }

    /// All of it.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// Line and column of an offset in bytes, wherever it points.
    pub fn place(&self, offset: usize) -> Place {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place::File {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// What the parser could not understand, in its words.
    pub fn problem(&self, error: &toml::de::Error) -> Problem {
        let start = error.span().map_or(0, |span| span.start);
        Problem {
            place: self.place(start),
            key: String::new(),
            message: format!("not TOML: {}", error.message()),
        }
    }

    /// A value of the file.
    pub fn written<'v>(&self, value: &'v Spanned<DeValue<'v>>) -> Written<'v> {
        Written { place: self.place(value.span().start), value: Value::Toml(value.get_ref()) }
    }

    /// The entries of a list of the file.
    pub fn entries<'v>(&self, list: &'v [Spanned<DeValue<'v>>]) -> Vec<Written<'v>> {
        list.iter().map(|value| self.written(value)).collect()
    }
}

/// A value as it was written.
#[derive(Clone, Debug)]
pub struct Written<'a> {
    /// Where.
    pub place: Place,
    /// What.
    pub value: Value<'a>,
}

/// What a value may be written as.
#[derive(Clone, Debug)]
pub enum Value<'a> {
    /// In the file, where the type is written too.
    Toml(&'a DeValue<'a>),
    /// As words on the command line or in the environment, whose type is what it needs to be.
    Words(Vec<String>),
}

/// A setting that a flag or a variable gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Which.
    pub setting: Setting,
    /// Whether the environment gave it.
    pub from_environment: bool,
    /// One word, or several of a list.
    pub words: Vec<String>,
}

impl Given {
    pub(super) fn written(&self) -> Written<'static> {
        let place = match self.from_environment {
            true => Place::Environment(self.setting.variable),
            false => Place::Flag(self.setting.flag),
        };
        Written { place, value: Value::Words(self.words.clone()) }
    }
}

/// What is in a table of the file, under its dotted name.
pub fn lookup<'t>(table: &'t DeTable<'t>, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
    let (first, rest) =
        key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let value = table.get(first)?;
    match rest {
        None => Some(value),
        Some(rest) => lookup(value.get_ref().as_table()?, rest),
    }
}

/// The TOML type of a value, with its article.
pub fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

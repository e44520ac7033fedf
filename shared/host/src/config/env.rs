//! Reads a struct of variables from the environment. A bad value is reported in one sentence, which names the
//! variable and shows no secret.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::config::secret::Secret;

/// A configuration that no service can run with, in one sentence.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadConfiguration(String);

impl BadConfiguration {
    /// One sentence, which names the variable and shows no secret.
    pub fn new(sentence: impl Into<String>) -> BadConfiguration {
        BadConfiguration(sentence.into())
    }

    /// Refuses a configuration unless this holds.
    pub(super) fn require(
        holds: bool,
        sentence: impl Into<String>,
    ) -> Result<(), BadConfiguration> {
        if holds { Ok(()) } else { Err(BadConfiguration::new(sentence)) }
    }
}

/// Reads a struct of variables from the process's environment.
pub fn read<C: clap::Parser>() -> Result<C, BadConfiguration> {
    read_os(|name| std::env::var_os(name))
}

/// Reads a struct of variables from a function that returns the value of each name.
pub fn read_from<C: clap::Parser>(
    value: impl Fn(&str) -> Option<String>,
) -> Result<C, BadConfiguration> {
    read_os(|name| value(name).map(OsString::from))
}

pub(crate) fn read_os<C: clap::Parser>(
    value: impl Fn(&str) -> Option<OsString>,
) -> Result<C, BadConfiguration> {
    // The values are passed to clap as flags. clap itself would accept an empty variable as a value, and a test
    // cannot change the environment of its process.
    let command = C::command().no_binary_name(true);
    let mut flags: Vec<String> = Vec::new();
    for arg in command.get_arguments() {
        let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
        let Some(flag) = arg.get_long() else { continue };
        let is_secret = arg.is_hide_env_values_set();
        let given = match (is_secret, value(name)) {
            (true, _) => secret_value(name, &value)?,
            (false, Some(value)) => variable_text(name, value, false)?,
            (false, None) => None,
        };
        if let Some(value) = given {
            flags.push(format!("--{flag}={value}"));
        }
    }
    command
        .mut_args(|arg| arg.env(None))
        .try_get_matches_from(flags)
        .and_then(|matches| C::from_arg_matches(&matches))
        .map_err(|error| describe_error::<C>(&error))
}

/// The present value of a secret of the process's environment, or of the file that its variable names; `None` without
/// one.
///
/// # Errors
/// If both are set, its file cannot be read, or it is no text of one line.
pub(crate) fn read_secret(name: &str) -> Result<Option<Secret>, BadConfiguration> {
    Ok(secret_value(name, |name| std::env::var_os(name))?.map(Secret::from))
}

fn secret_value(
    name: &str,
    value: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<String>, BadConfiguration> {
    let given = value(name).map(|value| variable_text(name, value, true)).transpose()?.flatten();
    let file_variable = file_variable(name);
    let Some(file) = value(&file_variable).filter(|it| !it.is_empty()) else { return Ok(given) };
    let both = format!("{name} and {file_variable} are both set: unset one of them.");
    BadConfiguration::require(given.is_none(), both)?;
    let content = std::fs::read(&file).map_err(|error| {
        let file = file.display();
        BadConfiguration(format!("{file_variable} is `{file}`, which cannot be read: {error}."))
    })?;
    variable_text(&file_variable, OsString::from_vec(content), true)
}

/// The variable that names a file with a secret, in place of the variable that holds the secret.
fn file_variable(name: &str) -> String {
    format!("{name}_FILE")
}

/// A secret without what editors and tools put around it: a byte order mark, and the end of its one line.
///
/// # Errors
/// If it holds a control character. No person sees it, and each server would refuse the secret with it.
fn secret_text(text: &str) -> Result<&str, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match text.chars().find(|c| c.is_control()) {
        None => Ok(text),
        Some('\n' | '\r') => Err("it has more than one line".to_owned()),
        Some(c) => Err(format!("it holds the control character U+{:04X}", u32::from(c))),
    }
}

/// The text of one variable; `None` if it is empty. Blanks around the text are removed; those of a secret are a part
/// of it.
pub(crate) fn variable_text(
    name: &str,
    value: OsString,
    is_secret: bool,
) -> Result<Option<String>, BadConfiguration> {
    let refused = |why: String| BadConfiguration(format!("{name} cannot be used: {why}."));
    let value = value.into_string().map_err(|_| refused("it is not valid UTF-8".to_owned()))?;
    let value = if is_secret { secret_text(&value).map_err(refused)? } else { &value };
    match (value, value.trim()) {
        ("", _) => Ok(None),
        (_, "") => Err(refused("it holds only blanks".to_owned())),
        (_, trimmed) => Ok(Some(if is_secret { value } else { trimmed }.to_owned())),
    }
}

/// The variables of one service alone, as a struct that [`read`] can read. `()` has none.
#[derive(clap::Parser)]
pub(crate) struct ServiceSettings<S: clap::Args> {
    #[command(flatten)]
    pub(crate) settings: S,
}

/// Every variable of a struct with its default and meaning, one a line, for `--help`.
pub fn describe_variables<C: clap::Parser>() -> String {
    let mut text = String::new();
    for arg in C::command().get_arguments() {
        let Some(name) = arg.get_env().and_then(|name| name.to_str()) else {
            continue;
        };
        let default = match arg.get_default_values() {
            [value] => format!(" (default {})", value.to_string_lossy()),
            _ if arg.is_required_set() => " (required)".to_owned(),
            _ => String::new(),
        };
        let meaning = arg.get_help().map(ToString::to_string).unwrap_or_default();
        text += &format!("  {name}{default}\n      {meaning}\n");
        if arg.is_hide_env_values_set() {
            text += &format!("      {} names a file with it instead.\n", file_variable(name));
        }
    }
    text
}

fn describe_error<C: clap::Parser>(error: &clap::Error) -> BadConfiguration {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let command = C::command();
    // clap names the flag, as in `--database-url <DATABASE_URL>`. The operator knows only the variable.
    let flags = context(ContextKind::InvalidArg);
    let is_named = |arg: &&clap::Arg| {
        let flag = arg.get_long().map(|long| format!("--{long}"));
        flags.split([' ', ',']).any(|word| Some(word) == flag.as_deref())
    };
    let args: Vec<&clap::Arg> = command.get_arguments().filter(is_named).collect();
    let is_secret = args.iter().any(|arg| arg.is_hide_env_values_set());
    let names: Vec<&str> = args.iter().filter_map(|arg| arg.get_env()?.to_str()).collect();
    let names = names.join(", ");
    let shown = match context(ContextKind::InvalidValue) {
        // An address may contain a password by mistake.
        value if !is_secret && !value.is_empty() && !value.contains('@') => {
            format!(" is `{value}`, which")
        }
        _ => String::new(),
    };
    BadConfiguration(match (error.kind(), std::error::Error::source(error)) {
        (ErrorKind::MissingRequiredArgument, _) => format!("{names} must be set."),
        (_, Some(why)) => format!("{names}{shown} cannot be used: {why}."),
        _ => format!("{names}{shown} is not one of: {}.", context(ContextKind::ValidValue)),
    })
}

/// Reads a number of seconds, from a second to an hour.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| (1..=3600).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "it is not a number of seconds from 1 to 3600".to_owned())
}

/// Reads a switch: 1 or true, 0 or false.
pub fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("it is neither 1 nor 0".to_owned()),
    }
}

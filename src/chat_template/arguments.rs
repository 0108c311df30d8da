//! Arguments as Python binds them to parameters.

use minijinja::value::{Kwargs, Rest, from_args};
use minijinja::{Error, ErrorKind, Value};

use super::Jinja;

/// An error that says no more than this.
pub(super) fn wrong(problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// Those that were given, for the parameters `names`: by position, or by a name that is not empty.
pub(super) fn bind<const N: usize>(
    positional: &[Value],
    named: &Kwargs,
    names: [&str; N],
) -> Jinja<[Option<Value>; N]> {
    if positional.len() > N {
        return Err(wrong(format!("takes at most {N} arguments, {} were given", positional.len())));
    }
    let mut bound = [const { None }; N];
    for (i, (argument, name)) in bound.iter_mut().zip(names).enumerate() {
        *argument = match positional.get(i) {
            Some(_) if named.has(name) => return Err(wrong(format!("argument `{name}` was given twice"))),
            Some(value) => Some(value.clone()),
            None => named.has(name).then(|| named.get(name)).transpose()?,
        };
    }
    named.assert_all_used()?;
    Ok(bound)
}

/// [`bind`] of what a method is called with.
pub(super) fn bind_all<const N: usize>(args: &[Value], names: [&str; N]) -> Jinja<[Option<Value>; N]> {
    let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
    bind(&positional, &named, names)
}

/// The first of them, which must be there.
pub(super) fn required(argument: Option<Value>) -> Jinja<Value> {
    argument.ok_or_else(|| Error::from(ErrorKind::MissingArgument))
}

/// A string, where it is there and not none.
pub(super) fn string_or_none(argument: &Option<Value>) -> Jinja<Option<&str>> {
    let Some(value) = argument.as_ref().filter(|value| !value.is_none()) else { return Ok(None) };
    value.as_str().map(Some).ok_or_else(|| wrong(format!("expected a string, found {}", value.kind())))
}

/// A whole number, where it is there and not none.
pub(super) fn whole_or_none(argument: Option<Value>) -> Jinja<Option<i64>> {
    argument.filter(|value| !value.is_none()).map(i64::try_from).transpose()
}

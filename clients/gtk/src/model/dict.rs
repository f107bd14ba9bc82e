//! Owns the access to dictionaries of D-Bus. It must not know what their keys mean.

use std::collections::HashMap;

use zbus::OwnedVariant;

/// A dictionary `a{sv}`.
pub(crate) type Dict = HashMap<String, OwnedVariant>;

/// Returns the value of `key`, or `None` if it is absent or has another type.
pub(crate) fn get<T>(dict: &Dict, key: &str) -> Option<T>
where
    T: TryFrom<OwnedVariant>,
{
    T::try_from(dict.get(key)?.try_clone().ok()?).ok()
}

/// Returns the text of `key`, or an empty text.
pub(crate) fn text(dict: &Dict, key: &str) -> String {
    get(dict, key).unwrap_or_default()
}

/// Returns a dictionary for a test.
#[cfg(test)]
pub(crate) fn dict<const N: usize>(entries: [(&str, zbus::Variant<'_>); N]) -> Dict {
    let entry = |(key, value): (&str, zbus::Variant<'_>)| {
        (key.to_owned(), OwnedVariant::try_from(value).unwrap())
    };
    entries.into_iter().map(entry).collect()
}

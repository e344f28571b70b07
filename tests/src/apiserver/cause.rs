//! Why an object or an option is refused, in kube-apiserver's words: the causes that a `Status` lists.

use serde_json::{Value, json};

/// One of the reasons why an object is refused, as `details.causes` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    reason: &'static str,
    pub(super) message: String,
    pub(super) field: String,
}

impl Cause {
    fn new(reason: &'static str, field: &str, message: String) -> Self {
        Self {
            reason,
            message,
            field: field.to_owned(),
        }
    }

    /// A field that isn't given.
    pub(crate) fn required(field: &str, why: &str) -> Self {
        let colon = if why.is_empty() { "" } else { ": " };
        Self::new("FieldValueRequired", field, format!("Required value{colon}{why}"))
    }

    /// A value that isn't allowed.
    pub(crate) fn invalid(field: &str, value: &str, why: &str) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {value}: {why}"))
    }

    /// A value of another type.
    pub(crate) fn type_invalid(field: &str, value: &str, expected: &str, found: &str) -> Self {
        let why = format!("{field} in body must be of type {expected}: {found:?}");
        Self::new("FieldValueTypeInvalid", field, format!("Invalid value: {value}: {why}"))
    }

    /// A value outside an enum.
    pub(crate) fn not_supported(field: &str, value: &Value, allowed: &[Value]) -> Self {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        Self::new(
            "FieldValueNotSupported",
            field,
            format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")),
        )
    }

    /// Something that may not be done.
    pub(crate) fn forbidden(field: &str, why: &str) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {why}"))
    }

    /// A field that somebody else manages.
    pub(crate) fn manager_conflict(field: &str, message: &str) -> Self {
        Self::new("FieldManagerConflict", field, message.to_owned())
    }

    /// As `details.causes` has it.
    pub(super) fn to_value(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

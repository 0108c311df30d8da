//! Errors in OpenAI's form, with the status that fits.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::Error;
use crate::fields::FieldError;

/// An error, as a client is told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The status of the response.
    pub status: StatusCode,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// The field of the request that it is about.
    pub param: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Seconds after which a client that was refused for the load may ask again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        ApiError { status, code: None, param: None, message: message.into() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// Something is wrong with this field.
    pub(super) fn field(name: &str, problem: impl std::fmt::Display) -> Self {
        let message = format!("`{name}`: {problem}");
        ApiError { param: Some(name.to_owned()), ..ApiError::bad_request(message) }
    }

    /// There is no such field.
    pub(super) fn unknown_field(name: &str) -> Self {
        ApiError::field(name, "this server has no such field").with_code("unknown_parameter")
    }

    pub(super) fn with_code(self, code: &'static str) -> Self {
        ApiError { code: Some(code), ..self }
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": …}`.
    pub fn to_json(&self) -> Value {
        let ApiError { message, param, code, .. } = self;
        json!({"error": {"message": message, "type": self.kind(), "param": param, "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.to_json())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER);
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

impl From<FieldError> for ApiError {
    fn from(FieldError { field, problem }: FieldError) -> Self {
        let named = |prefix: &str| problem.strip_prefix(prefix)?.split_once('`').map(|(name, _)| name.to_owned());
        // The path ends with the field's own name in some places, and with that of what it is in in others.
        let path = |name: String| match &field {
            Some(path) if *path == name || path.ends_with(&format!(".{name}")) => path.clone(),
            Some(parent) => format!("{parent}.{name}"),
            None => name,
        };
        if let Some(name) = named("unknown field `") {
            return ApiError::unknown_field(&path(name));
        }
        if let Some(name) = named("missing field `") {
            return ApiError::field(&path(name), "missing");
        }
        if let Some(name) = named("duplicate field `") {
            return ApiError::field(&path(name), "given twice");
        }
        match field {
            Some(field) => ApiError::field(&field, problem),
            None => ApiError::bad_request(problem),
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Setting { setting, found, expected } => {
                ApiError::field(wire_name(setting), format!("{found}, expected {expected}"))
            }
            Error::Input(_) => ApiError::bad_request(message),
            Error::Template(_) => ApiError { param: Some("messages".into()), ..ApiError::bad_request(message) },
            Error::Interrupted => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending"),
            Error::OutOfMemory(_) | Error::Busy(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message),
            _ => {
                // It may name files of the server's.
                log::error!("{message}");
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the generation failed; the server's log says why")
            }
        }
    }
}

/// What OpenAI calls an option of a generation.
fn wire_name(setting: &str) -> &str {
    match setting {
        "temp" => "temperature",
        name => name,
    }
}

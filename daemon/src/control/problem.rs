//! Refusals: problems as RFC 9457 has them, each with a code for programs and a sentence for people.

use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::schema::{self, Fault};

/// A refusal, on its way to the client.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    errors: Vec<Fault>,
}

impl Problem {
    /// A refusal. `code` is a fixed word, `detail` a sentence that names what it is about.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Problem { status, code, detail: detail.into(), errors: Vec::new() }
    }

    /// There is no such thing; perhaps one of the known names was meant.
    pub fn unknown<'a>(
        code: &'static str,
        kind: &str,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut detail = format!("there is no {kind} `{name}`");
        if let Some(meant) = diskchain_config::nearest(name, known) {
            detail += &format!("; did you mean `{meant}`?");
        }
        Problem::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// Limits with these faults.
    pub fn invalid_limits(errors: Vec<Fault>) -> Self {
        let all: Vec<_> = errors
            .iter()
            .map(|fault| format!("{}: {}", fault.pointer.trim_start_matches("#/"), fault.detail))
            .collect();
        let detail = format!("nothing was changed: {}", all.join("; "));
        Problem { errors, ..Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_limits", detail) }
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        let code = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
            _ => "bad_body",
        };
        Problem::new(rejection.status(), code, rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "bad_path", rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let problem = schema::Problem {
            status: self.status.as_u16(),
            title: self.status.canonical_reason().unwrap_or_default().to_owned(),
            code: self.code.to_owned(),
            detail: self.detail,
            errors: self.errors,
        };
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, content_type, axum::Json(problem).into_response().into_body()).into_response()
    }
}

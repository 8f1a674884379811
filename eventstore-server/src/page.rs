//! The page that shows a store in a browser: three files without a build step.

use axum::http::{HeaderValue, header};
use axum::response::Response;

use crate::answer::bytes;

/// Only content from the server itself, and no inline code.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page for this path; its other files are below the path. It refers to them by relative URLs: a proxy may have
/// removed a prefix of the path that the browser sees.
pub(crate) fn html(path: &str) -> Response {
    // Special characters are percent-encoded in a path, so none remain that have a meaning in HTML.
    let last = path.rsplit('/').next().unwrap_or_default().replace(['"', '<', '>', '&', '\''], "");
    let base = if last.is_empty() { ".".to_owned() } else { format!("./{last}") };
    let text = include_str!("page/index.html").replace("{base}", &base);
    with_policy(bytes("text/html; charset=utf-8", text.into_bytes()))
}

pub(crate) async fn css() -> Response {
    with_policy(bytes("text/css; charset=utf-8", include_bytes!("page/page.css").to_vec()))
}

pub(crate) async fn js() -> Response {
    with_policy(bytes("text/javascript; charset=utf-8", include_bytes!("page/page.js").to_vec()))
}

fn with_policy(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-opener-policy", HeaderValue::from_static("same-origin"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    // The next version of the server has other files.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

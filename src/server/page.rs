//! The chat page at `/`: files of this program, without anything from elsewhere.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::routing::get;

/// Path, type and text of each.
const FILES: [(&str, &str, &str); 7] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/page.js", JAVASCRIPT, include_str!("page/page.js")),
    ("/api.js", JAVASCRIPT, include_str!("page/api.js")),
    ("/chats.js", JAVASCRIPT, include_str!("page/chats.js")),
    ("/dom.js", JAVASCRIPT, include_str!("page/dom.js")),
    ("/markdown.js", JAVASCRIPT, include_str!("page/markdown.js")),
];
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// The page talks to its own server alone, and runs what came from there alone.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Its paths.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, content_type, text)| {
        let headers = [
            (CONTENT_TYPE, content_type),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (REFERRER_POLICY, "no-referrer"),
            (CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(async move || (headers, text)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_small_and_makes_elements_of_no_text() {
        let bytes: usize = FILES.iter().map(|(_, _, text)| text.len()).sum();
        assert!((30_000..60_000).contains(&bytes), "{bytes} bytes");
        for (path, _, text) in FILES {
            for way in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "DOMParser",
                "eval(",
                "Function(",
                " style=",
            ] {
                assert!(!text.contains(way), "{path} has {way}");
            }
        }
    }

    #[test]
    fn the_page_loads_only_what_is_here() {
        let mut loaded = 0;
        for (path, _, text) in FILES {
            for before in [" from \"./", " href=\"", " src=\"", "url("] {
                for rest in text.split(before).skip(1) {
                    let name = rest.split(['"', ')']).next().unwrap();
                    if name.starts_with(['#']) || name.starts_with("data:") {
                        continue;
                    }
                    loaded += 1;
                    assert!(FILES.iter().any(|(path, ..)| path[1..] == *name), "{path} loads {name}");
                }
            }
        }
        assert!(loaded >= 7, "only {loaded} were found");
    }
}

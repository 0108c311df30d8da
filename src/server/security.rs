//! Who may ask: API keys, and which web pages.
//!
//! A web page may send requests to any address that its visitor's browser can reach, this machine's own included. A page of another
//! origin is told by the `Origin` header. One whose own name was made to point here (DNS rebinding) is told by the `Host` header,
//! which then holds that name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use super::ApiError;
use crate::error::{Error, Result};

/// Keys, any of which lets a request in.
#[derive(Clone)]
pub struct ApiKeys(Arc<[[u8; 32]]>);

impl ApiKeys {
    /// One a line; empty lines and those that begin with `#` are none. `None` when there is none.
    pub fn parse(text: &str) -> Option<Self> {
        let keys = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Arc<[_]> = keys.map(|key| Sha256::digest(key).into()).collect();
        (!keys.is_empty()).then_some(ApiKeys(keys))
    }

    /// Whether this is one of them. How long that takes does not depend on the keys.
    fn have(&self, key: &str) -> bool {
        let hash = Sha256::digest(key);
        self.0.iter().fold(Choice::from(0), |found, known| found | known.ct_eq(&hash)).into()
    }
}

/// What lets requests in.
pub struct Guard {
    keys: Option<ApiKeys>,
    origins: Vec<String>,
    /// Whether requests must name this machine itself: where anybody on it may ask.
    is_local: bool,
}

impl Guard {
    /// # Errors
    /// When an origin is not one.
    pub fn new(address: SocketAddr, keys: Option<ApiKeys>, origins: &[String]) -> Result<Self> {
        for origin in origins {
            let is_origin = || {
                let (scheme, host) = origin.split_once("://")?;
                let is_one = scheme.starts_with("http") && host.parse::<Authority>().is_ok();
                (is_one && HeaderValue::from_str(origin).is_ok()).then_some(())
            };
            if origin != "*" && is_origin().is_none() {
                return Err(Error::Setting {
                    setting: "cors",
                    found: format!("{origin:?}"),
                    expected: "an origin such as https://example.com, or *".into(),
                });
            }
        }
        let is_local = keys.is_none() && address.ip().is_loopback();
        Ok(Guard { keys, origins: origins.to_vec(), is_local })
    }

    /// # Errors
    /// 403 when a web page asks that may not.
    pub fn check_page(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
        let host = text(HOST).unwrap_or_default();
        if self.is_local && !is_local(host) {
            return Err(forbidden(format!("this server answers to this machine's own names, not to {host:?}")));
        }
        let Some(origin) = text(ORIGIN) else { return Ok(()) };
        // What stands between may speak HTTPS.
        let is_own = ["http://", "https://"].iter().any(|scheme| origin.strip_prefix(scheme) == Some(host));
        match is_own || self.origins.iter().any(|known| known == "*" || known == origin) {
            true => Ok(()),
            false => Err(forbidden(format!("pages of {origin:?} may not use this server; --cors lets them"))),
        }
    }

    /// # Errors
    /// 401 when there are keys and the request has none of them.
    pub fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.split_once(' '));
        let key = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map_or("", |(_, key)| key.trim());
        match keys.have(key) {
            true => Ok(()),
            false => {
                let message = "an API key is needed: Authorization: Bearer KEY";
                Err(ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key"))
            }
        }
    }
}

fn forbidden(message: String) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, message)
}

/// Whether a `Host` names the machine that the server runs on.
fn is_local(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers<const N: usize>(fields: [(axum::http::HeaderName, &str); N]) -> HeaderMap {
        fields.into_iter().map(|(name, value)| (name, HeaderValue::from_str(value).unwrap())).collect()
    }

    fn guard(address: &str, keys: Option<&str>, origins: &[&str]) -> Guard {
        let origins: Vec<String> = origins.iter().map(|&origin| origin.to_owned()).collect();
        Guard::new(address.parse().unwrap(), keys.and_then(ApiKeys::parse), &origins).unwrap()
    }

    #[test]
    fn a_page_whose_name_was_bent_here_gets_nothing() {
        let guard = guard("127.0.0.1:80", None, &[]);
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "[::1]:8080"] {
            assert_eq!(guard.check_page(&headers([(HOST, host)])), Ok(()), "{host}");
        }
        for host in
            ["example.com", "example.com:8080", "localhost.example.com", "127.0.0.1.example.com", "", "a@localhost@b"]
        {
            assert_eq!(guard.check_page(&headers([(HOST, host)])).unwrap_err().status, 403, "{host}");
        }
        assert_eq!(guard.check_page(&HeaderMap::new()).unwrap_err().status, 403);
    }

    #[test]
    fn pages_of_other_origins_are_told() {
        let own = |origin| headers([(HOST, "localhost:8080"), (ORIGIN, origin)]);
        let closed = guard("127.0.0.1:80", None, &[]);
        assert_eq!(closed.check_page(&own("http://localhost:8080")), Ok(()));
        assert_eq!(closed.check_page(&own("https://localhost:8080")), Ok(()));
        for origin in ["http://localhost:8081", "https://example.com", "null", "http://localhost:8080.example.com"] {
            assert_eq!(closed.check_page(&own(origin)).unwrap_err().status, 403, "{origin}");
        }
        let open = guard("127.0.0.1:80", None, &["https://example.com"]);
        assert_eq!(open.check_page(&own("https://example.com")), Ok(()));
        assert!(open.check_page(&own("https://example.com.au")).is_err());
        assert_eq!(guard("127.0.0.1:80", None, &["*"]).check_page(&own("https://example.com")), Ok(()));
        for wrong in ["example.com", "ftp://example.com", "https://", "https://example.com/page"] {
            assert!(Guard::new("127.0.0.1:80".parse().unwrap(), None, &[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn any_of_the_keys_and_nothing_else_opens() {
        assert!(ApiKeys::parse("\n# none\n").is_none());
        let guard = guard("0.0.0.0:80", Some("# mine\nsecret-1\n\n secret-2 \n"), &[]);
        for key in ["secret-1", "secret-2"] {
            assert_eq!(guard.check_key(&headers([(AUTHORIZATION, &format!("Bearer {key}"))])), Ok(()));
        }
        for value in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer secret",
            "Bearer secret-12",
            "Basic secret-1",
            "secret-1",
            "Bearer # mine",
        ] {
            assert_eq!(guard.check_key(&headers([(AUTHORIZATION, value)])).unwrap_err().status, 401, "{value}");
        }
        assert!(guard.check_key(&HeaderMap::new()).is_err());
        // With a key, the machine may have any name.
        assert_eq!(guard.check_page(&headers([(HOST, "example.com")])), Ok(()));
    }
}

//! Requests to the hub about one model: who is told the token, what is asked again, and what refusals mean.
//!
//! The interface is that of <https://huggingface.co/docs/hub/api>: the errors' codes are in the header `X-Error-Code`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::config::Config;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, ResponseExt};

use super::name::ModelName;
use super::{HubOptions, Token};
use crate::error::{Error, HubProblem, Result};
use crate::watch::go_on;

/// How long the hub may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it may be silent.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// The hub needs two.
const MAX_REDIRECTS: usize = 10;
/// The longest wait that a hub which is asked too often may ask for.
const MAX_RETRY_AFTER: u64 = 300;
/// Where it does not say how long.
const RETRY_AFTER_UNKNOWN: u64 = 5;
/// How often one request is refused as one too many before that is an error.
const MAX_REFUSALS: usize = 5;
/// The first wait after a failure; each is twice the one before it, up to the last.
const WAITS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];
/// How soon a wait ends that was asked to.
const TICK: Duration = Duration::from_millis(50);

/// What stays as it is in a part of a path.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What asks the hub about one model.
#[derive(Clone)]
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<Token>,
    patience: Duration,
    name: ModelName,
    /// Once it is true, waits end.
    pub stop: Arc<AtomicBool>,
}

/// How far redirects are followed.
#[derive(Clone, Copy, PartialEq)]
enum Follow {
    All,
    /// Not to other hosts, whose answers know nothing of the hub.
    WithinHub,
}

/// Who is asked: scheme, host and port.
#[derive(Clone, PartialEq)]
struct Origin(String, String, u16);

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some(Origin(scheme, uri.host()?.to_ascii_lowercase(), port))
    }
}

impl Client {
    pub fn new(options: &HubOptions, name: &ModelName, stop: &Arc<AtomicBool>) -> Result<Self> {
        let endpoint = options.endpoint.trim_end_matches('/').to_owned();
        let origin = endpoint.parse().ok().filter(is_web).and_then(|uri| Origin::of(&uri));
        let Some(origin) = origin else {
            return Err(Error::Input(format!("the hub's address is {endpoint:?}, expected https://HOST")));
        };
        let system = rustls_native_certs::load_native_certs().certs;
        let roots = match system.is_empty() {
            true => RootCerts::WebPki,
            false => RootCerts::new_with_certs(
                &system.iter().map(|der| Certificate::from_der(der).to_owned()).collect::<Vec<_>>(),
            ),
        };
        let config: Config = Agent::config_builder()
            .proxy(options.proxy.as_ref().map(|proxy| proxy.0.clone()))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("mlx_lm/", env!("CARGO_PKG_VERSION")))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .timeout_per_write(Some(READ_TIMEOUT))
            .build();
        Ok(Client {
            agent: config.into(),
            endpoint,
            origin,
            token: options.token.clone(),
            patience: options.patience,
            name: name.clone(),
            stop: Arc::clone(stop),
        })
    }

    /// What the hub says of the model at its revision: JSON.
    pub fn info(&self) -> Result<Vec<u8>> {
        let revision = utf8_percent_encode(self.name.revision(), PATH);
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, self.name.repository());
        let mut response = self.ask("GET", &url, 0, Follow::All)?;
        let json = response.body_mut().with_config().limit(super::MAX_INFO_BYTES).read_to_vec();
        json.map_err(|error| self.unreachable(&url, &error))
    }

    /// What the hub says of a file, without the file.
    pub fn head(&self, commit: &str, file: &str) -> Result<HeaderMap> {
        Ok(self.ask("HEAD", &self.file_url(commit, file), 0, Follow::WithinHub)?.headers().clone())
    }

    /// A file from its byte `from` on, or from the first one where status 200 says so.
    pub fn get(&self, commit: &str, file: &str, from: u64) -> Result<Response<Body>> {
        self.ask("GET", &self.file_url(commit, file), from, Follow::All)
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        let file = utf8_percent_encode(file, PATH);
        format!("{}/{}/resolve/{commit}/{file}", self.endpoint, self.name.repository())
    }

    /// Ask, and ask again where the hub says to.
    fn ask(&self, method: &str, url: &str, from: u64, follow: Follow) -> Result<Response<Body>> {
        let mut retry = self.retry();
        for refusals in 1.. {
            let response = self.follow(method, url, from, follow)?;
            let status = response.status();
            match status {
                StatusCode::TOO_MANY_REQUESTS => {
                    let seconds = retry_after(response.headers());
                    if seconds > MAX_RETRY_AFTER || refusals > MAX_REFUSALS {
                        return Err(self.error(HubProblem::RateLimited { host: self.host(), seconds }));
                    }
                    log::warn!("{} is asked too often (429); going on in {seconds} s", self.host());
                    self.wait(Duration::from_secs(seconds))?;
                }
                _ if status.is_server_error() && retry.wait()? => {}
                _ if status.is_client_error() || status.is_server_error() => return Err(self.refusal(&response)),
                _ => return Ok(response),
            }
        }
        unreachable!("it ends with an answer")
    }

    /// One request, and those that it is redirected to. The token is for the hub alone.
    fn follow(&self, method: &str, url: &str, from: u64, follow: Follow) -> Result<Response<Body>> {
        let mut url = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            go_on(&self.stop)?;
            let uri: Uri = url.parse().map_err(|_| self.no_hub(format!("it redirects to {url:?}")))?;
            let is_hub = Origin::of(&uri) == Some(self.origin.clone());
            let mut request = match method {
                "HEAD" => self.agent.head(&url),
                _ => self.agent.get(&url),
            };
            request = request.header(ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| is_hub) {
                request = request.header(AUTHORIZATION, format!("Bearer {}", token.0));
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| self.unreachable(&url, &error))?;
            let target = match response.headers().get(LOCATION).and_then(|target| target.to_str().ok()) {
                Some(target) if response.status().is_redirection() => resolve(&uri, target),
                _ => return Ok(response),
            };
            let Some(target) = target.filter(is_web) else {
                return Err(self.no_hub("it redirects to what is no web address".to_owned()));
            };
            if follow == Follow::WithinHub && Origin::of(&target) != Some(self.origin.clone()) {
                return Ok(response);
            }
            url = target.to_string();
        }
        Err(self.no_hub("it redirects without end".to_owned()))
    }

    /// What a status of 400 or more means.
    fn refusal(&self, response: &Response<Body>) -> Error {
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (code, message) = (text("X-Error-Code"), text("X-Error-Message"));
        let (url, status, has_token) = (response.get_uri(), response.status().as_u16(), self.token.is_some());
        let is_hub = Origin::of(url) == Some(self.origin.clone());
        let host = url.host().unwrap_or_default().to_owned();
        let problem = match (status, code) {
            (_, "GatedRepo") => {
                HubProblem::Gated { page: format!("{}/{}", self.endpoint, self.name.repository()), has_token }
            }
            (_, "RevisionNotFound") => HubProblem::NoRevision { revision: self.name.revision().to_owned() },
            (404, "EntryNotFound") => {
                HubProblem::NoHub { host, problem: "it lists a file that it does not have".into() }
            }
            (401, _) if is_hub && !has_token => HubProblem::NeedsToken { host },
            (404, _) | (401, "RepoNotFound") if is_hub => HubProblem::Missing { host, has_token },
            (401, _) if is_hub => HubProblem::WrongToken { host },
            _ => {
                let message = if message.is_empty() { String::new() } else { format!(": {message}") };
                HubProblem::Refused { host, status, message }
            }
        };
        self.error(problem)
    }

    /// A request that failed is worth another one after a while.
    pub fn retry(&self) -> Retry<'_> {
        Retry { client: self, next: WAITS[0], since: None }
    }

    /// For so long, unless it is stopped.
    fn wait(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            go_on(&self.stop)?;
            match end.saturating_duration_since(Instant::now()) {
                Duration::ZERO => return Ok(()),
                left => thread::sleep(left.min(TICK)),
            }
        }
    }

    fn unreachable(&self, url: &str, error: &ureq::Error) -> Error {
        let host = url.parse().ok().and_then(|uri: Uri| uri.host().map(str::to_owned)).unwrap_or_else(|| self.host());
        self.error(HubProblem::Unreachable { host, reason: reason(error) })
    }

    fn no_hub(&self, problem: String) -> Error {
        self.error(HubProblem::NoHub { host: self.host(), problem })
    }

    /// The hub's name.
    pub fn host(&self) -> String {
        self.origin.1.clone()
    }

    pub fn error(&self, problem: HubProblem) -> Error {
        Error::Hub { name: self.name.to_string(), problem }
    }
}

/// From failure to failure, as long as patience lasts.
pub(super) struct Retry<'c> {
    client: &'c Client,
    next: Duration,
    since: Option<Instant>,
}

impl Retry<'_> {
    /// Wait; false once that was long enough.
    pub fn wait(&mut self) -> Result<bool> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() + self.next > self.client.patience {
            return Ok(false);
        }
        self.client.wait(self.next)?;
        self.next = (2 * self.next).min(WAITS[1]);
        Ok(true)
    }
}

fn is_web(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
}

/// Where a redirect leads. The hub's are whole addresses, or paths from the root.
fn resolve(from: &Uri, target: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let whole = match target {
        _ if target.starts_with("//") => format!("{scheme}:{target}"),
        _ if target.starts_with('/') => format!("{scheme}://{authority}{target}"),
        _ => target.to_owned(),
    };
    whole.parse().ok()
}

/// In seconds: of the header of this name, or of the one that the hub sends instead, `RateLimit: "api";r=0;t=55`.
fn retry_after(headers: &HeaderMap) -> u64 {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let reset = || text("RateLimit").split(';').find_map(|part| part.trim().strip_prefix("t=")?.parse().ok());
    text(RETRY_AFTER.as_str()).trim().parse().ok().or_else(reset).unwrap_or(RETRY_AFTER_UNKNOWN)
}

/// Why a request failed, without the words that every failure has.
pub(super) fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Rustls(error) => error.to_string(),
        ureq::Error::HostNotFound => "its name is not known here; is there a network?".to_owned(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let from: Uri = "https://hub:8443/a/b?c".parse().unwrap();
        for (target, found) in [
            ("https://cdn/x?y=z", Some("https://cdn/x?y=z")),
            ("//cdn/x", Some("https://cdn/x")),
            ("/x/y", Some("https://hub:8443/x/y")),
            ("http://", None),
        ] {
            assert_eq!(resolve(&from, target).map(|uri| uri.to_string()).as_deref(), found, "{target}");
        }
        assert!(
            !["file:///etc/passwd", "x/y", "ftp://a/b"]
                .iter()
                .any(|target| resolve(&from, target).is_some_and(|uri| is_web(&uri)))
        );
    }

    #[test]
    fn only_the_same_host_and_port_is_the_hub() {
        let of = |text: &str| Origin::of(&text.parse().unwrap());
        let hub = of("https://Hub.co/x");
        assert!(hub == of("https://hub.co:443/y"));
        for other in [
            "http://hub.co/x",
            "https://hub.co:444/x",
            "https://hub.co.evil/x",
            "https://cdn-hub.co/x",
            "https://hub.co@evil/x",
        ] {
            assert!(hub != of(other), "{other}");
        }
    }

    #[test]
    fn waits_are_what_the_hub_says() {
        for (headers, seconds) in [
            (&[("retry-after", "7")][..], 7),
            (&[("ratelimit", "\"api\";r=0;t=55")], 55),
            (&[("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), ("ratelimit", "\"api\"; r=0; t=9")], 9),
            (&[], RETRY_AFTER_UNKNOWN),
        ] {
            let map = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            assert_eq!(retry_after(&map), seconds, "{headers:?}");
        }
    }
}

//! What each path does.

use std::future::poll_fn;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, MatchedPath, Path, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::registry::Served;
use super::{ApiError, Shared, page, submit, tokens};
use crate::generate::{Event, FinishReason, GenerateOptions, Request as Generate};

/// Of a request's head: its path and fields.
pub const MAX_HEAD_BYTES: usize = 64 << 10;
/// Of a request's body: some two million tokens.
const MAX_BODY_BYTES: usize = 8 << 20;
/// Larger ones are read a few at a time.
const SMALL_BODY_BYTES: usize = 64 << 10;
pub const LARGE_BODIES: usize = 32;
/// From a request's head to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the token may take that `/health` asks for, and for how long another one's counts.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

type Answered = Result<Response, ApiError>;

/// All paths.
pub fn router(shared: Arc<Shared>, cors: &[String]) -> Router {
    let keyed = Router::new()
        .route("/v1/chat/completions", post(submit::chat))
        .route("/v1/completions", post(submit::completions))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/tokenize", post(tokens::tokenize))
        .route("/v1/detokenize", post(tokens::detokenize))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(Arc::clone(&shared), check_key));
    let router = keyed
        .merge(page::router())
        .route("/health", get(health))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is no such path; docs/server.md lists them"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path has another method; the header Allow names it")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(from_fn_with_state(Arc::clone(&shared), check_head))
        .layer(from_fn_with_state(Arc::clone(&shared), count))
        .layer(CatchPanicLayer::custom(panicked));
    let router = if cors.is_empty() { router } else { router.layer(cors_layer(cors)) };
    router.with_state(shared)
}

fn cors_layer(origins: &[String]) -> CorsLayer {
    let origins = match origins.iter().any(|origin| origin == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok())),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
}

fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    log::error!("a request panicked: {}", crate::error::panic_message(&*panic));
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error; please report it").into_response()
}

/// # Errors
/// 431 where the head is larger than heads may be, which is more than its connection is sure to refuse; else as [`Guard::check_page`].
async fn check_head(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Answered {
    let of_fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    let of_target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    if of_target + of_fields.sum::<usize>() > MAX_HEAD_BYTES {
        let message = format!("the head has more than {MAX_HEAD_BYTES} bytes, which is the most that is read");
        return Err(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message));
    }
    shared.guard.check_page(request.headers())?;
    Ok(next.run(request).await)
}

async fn check_key(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Answered {
    shared.guard.check_key(request.headers())?;
    Ok(next.run(request).await)
}

/// Count the request's result, also where the client goes away before there is one.
async fn count(State(shared): State<Arc<Shared>>, path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    struct Counted {
        shared: Arc<Shared>,
        path: Option<MatchedPath>,
        result: String,
    }
    impl Drop for Counted {
        fn drop(&mut self) {
            let path = self.path.as_ref().map_or("other", MatchedPath::as_str);
            self.shared.metrics.request(path, std::mem::take(&mut self.result));
        }
    }
    let mut counted = Counted { shared, path, result: "abandoned".to_owned() };
    let response = next.run(request).await;
    counted.result = response.status().as_u16().to_string();
    response
}

/// A request's body.
pub struct Body {
    bytes: Bytes,
    /// A large one's place among those that are in memory.
    _place: Option<OwnedSemaphorePermit>,
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A request's body, which is bounded in size and time. It is read before the request has a place in the queue, so that a slow
/// client takes none.
///
/// # Errors
/// 408, 413, or 400 when it breaks off.
pub async fn body(shared: &Shared, request: Request) -> Result<Body, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let is_small = length.is_some_and(|length: usize| length <= SMALL_BODY_BYTES);
    let read = async {
        let place = match is_small {
            true => None,
            false => Arc::clone(&shared.large_bodies).acquire_owned().await.ok(),
        };
        Bytes::from_request(request, &()).await.map(|bytes| Body { bytes, _place: place })
    };
    let late = |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not come to its end in time");
    timeout(BODY_TIMEOUT, read).await.map_err(late)?.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the body has more than {MAX_BODY_BYTES} bytes, which is the most that is read");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        }
        _ => ApiError::bad_request("the body could not be read"),
    })
}

async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let models: Vec<Value> = shared.registry.names().map(|name| model_json(&shared, name)).collect();
    Json(json!({"object": "list", "data": models}))
}

async fn model(
    State(shared): State<Arc<Shared>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::bad_request("the model's name is not UTF-8"))?;
    shared.registry.require(&name)?;
    Ok(Json(model_json(&shared, &name)))
}

fn model_json(shared: &Shared, name: &str) -> Value {
    json!({"id": name, "object": "model", "created": shared.registry.started, "owned_by": "mlx_lm"})
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    const TEXT: HeaderValue = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, TEXT)], shared.metrics.encode(&shared.registry.loads())).into_response()
}

/// 200 when a token was made a moment ago, or can be made now.
async fn health(State(shared): State<Arc<Shared>>) -> Result<Json<Value>, ApiError> {
    if shared.is_draining.load(Ordering::Acquire) {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is ending"));
    }
    let Some(model) = shared.registry.any()? else { return Ok(Json(json!({"status": "idle"}))) };
    if !model.has_made_token(HEALTH_TIMEOUT)
        && !matches!(timeout(HEALTH_TIMEOUT, make_token(&model)).await, Ok(Ok(true)))
    {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, format!("{}: no token could be made", model.name)));
    }
    Ok(Json(json!({"status": "ok"})))
}

async fn make_token(model: &Served) -> crate::Result<bool> {
    let options = GenerateOptions { max_tokens: 1, ignore_eos: true, ..GenerateOptions::default() };
    let mut generation = model.engine.submit(Generate { prompt: vec![0], options, prompt_cache: None })?;
    loop {
        match poll_fn(|context| generation.poll_event(context)).await {
            Some(Event::Finished(finished)) => return Ok(finished.reason == FinishReason::Length),
            Some(_) => {}
            None => return Ok(false),
        }
    }
}

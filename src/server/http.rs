//! Connections: what bounds each, how many there are, and how they end.

use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use super::{ServerOptions, Shared, blocking, routes};
use crate::error::{Error, Result};

/// Connections at a time; more wait until one ends.
const MAX_CONNECTIONS: usize = 1024;
/// From a connection, or the request before, to the end of a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// For how long a client may take nothing of an answer that it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of a request's head, of which hyper looks at a buffer more, and of an answer that is not sent yet.
const BUFFER_BYTES: usize = routes::MAX_HEAD_BYTES;
/// How long connections may take to end once nothing is under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often models are looked at, and after how many times their prompts are saved.
const TICK: Duration = Duration::from_secs(1);
const SAVE_TICKS: u64 = 60;

/// Answer requests until `end`, then those under way.
pub async fn serve(
    listener: TcpListener,
    shared: &Arc<Shared>,
    options: &ServerOptions,
    end: impl Future<Output = ()> + Send,
) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|e| Error::Internal(e.to_string()))?;
    let router = routes::router(Arc::clone(shared), &options.cors);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let accept = async {
        loop {
            let place = Arc::clone(&connections).acquire_owned().await.expect("it is not closed");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = graceful.watch(connection(stream, router.clone()));
                    tokio::spawn(async move {
                        if let Err(error) = connection.await {
                            log::debug!("a connection: {error}");
                        }
                        drop(place);
                    });
                }
                // Out of file descriptors, for instance: some will be closed.
                Err(error) => {
                    log::warn!("a connection could not be accepted: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    let work = async {
        tokio::select! {
            failed = load_first(shared) => Err(failed),
            () = end => Ok(()),
            () = housekeeping(shared) => unreachable!("it does not end"),
        }?;
        shared.is_draining.store(true, Ordering::Release);
        log::info!("ending: requests under way have {:?}", options.drain);
        if timeout(options.drain, shared.permits.acquire_many(shared.capacity as u32)).await.is_err() {
            log::warn!("requests that are still under way are aborted");
            shared.registry.stop();
        }
        Ok::<(), Error>(())
    };
    tokio::select! {
        done = work => done?,
        () = accept => unreachable!("it does not end"),
    }
    let _ = timeout(CLOSE_TIMEOUT, graceful.shutdown()).await;
    Ok(())
}

/// Does not end unless the first model cannot be loaded.
async fn load_first(shared: &Shared) -> Error {
    match shared.registry.load_first().await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

/// Let idle models go, and keep prompts.
async fn housekeeping(shared: &Shared) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for tick in 1.. {
        ticks.tick().await;
        let registry = Arc::clone(&shared.registry);
        let done = blocking(move || {
            registry.drop_idle();
            if tick % SAVE_TICKS == 0u64 {
                registry.save_prompts();
            }
        });
        let _ = done.await;
    }
}

type Connection = http1::Connection<TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>>, TowerToHyperService<Router>>;

fn connection(stream: TcpStream, router: Router) -> Connection {
    let _ = stream.set_nodelay(true); // a token is not to wait for the next
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
}

//! What can be asked for under which path, and who may change what.
//!
//! Whoever may connect may look; only the super-user and the daemon's own user may change anything.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRef, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get};
use disk_core::throttle::{Group, Limits};

use super::accept::Peer;
use super::checks::Checks;
use super::limits::Words;
use super::problem::Problem;
use super::snapshot::Folders;
use super::{schema, silent_disks, snapshot, view};
use crate::disk::Disk;
use crate::manager::Manager;
use crate::server::Server;
use crate::{metrics, selftest};

/// Bytes of a request's body; the largest that makes sense has one.
const BODY_MOST: usize = 64 << 10;

/// How long the storage of all disks has to answer before the daemon counts as not ready.
const READY_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
struct Api {
    server: Arc<Server>,
    checks: Arc<Checks>,
    manager: Arc<Manager>,
    folders: Arc<Folders>,
}

impl FromRef<Api> for Arc<Manager> {
    fn from_ref(api: &Api) -> Self {
        Arc::clone(&api.manager)
    }
}

type Answer<T> = Result<Json<T>, Problem>;
type Body = Result<Bytes, BytesRejection>;

/// The paths of the API.
pub fn routes(server: Arc<Server>) -> Router {
    let manager = Arc::clone(server.manager());
    let folders = Arc::new(Folders::of(&manager));
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/version", get(async || Json(view::version())))
        .route("/v1/status", get(async |State(manager): Managed| Json(view::status(&manager))))
        .route("/v1/clients", get(async |State(manager): Managed| Json(view::clients(&manager))))
        .route("/v1/exports", get(async |State(manager): Managed| Json(view::exports(&manager))))
        .route("/v1/exports/{name}/check", get(check_export))
        .route("/v1/throttles", get(async |State(manager): Managed| Json(view::groups(&manager))))
        .route("/v1/throttles/{group}", get(group).put(put_group))
        .route("/v1/disks", get(async |State(manager): Managed| Json(view::disks(&manager))))
        .route("/v1/disks/{name}", get(disk))
        .route("/v1/disks/{name}/chain", get(async |NamedDisk(disk)| Json(view::chain(&disk))))
        .route("/v1/disks/{name}/stats", get(async |NamedDisk(disk)| Json(view::stats(&disk))))
        .route("/v1/disks/{name}/requests", get(async |NamedDisk(disk)| Json(view::requests(&disk))))
        .route("/v1/disks/{name}/throttle", get(throttle).put(put_throttle))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MOST))
        .with_state(Api { server, checks: Arc::default(), manager, folders })
}

type Managed = State<Arc<Manager>>;

async fn unknown_path(request: Request) -> Problem {
    let detail = format!("there is nothing at {}", request.uri().path());
    Problem::new(StatusCode::NOT_FOUND, "unknown_path", detail)
}

async fn wrong_method(request: Request) -> Problem {
    let detail = format!("{} cannot be done to {}", request.method(), request.uri().path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

async fn readyz(State(manager): Managed) -> Result<&'static str, Problem> {
    let not_ready = |detail: String| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", detail);
    if !manager.ready.load(Ordering::Relaxed) {
        return Err(not_ready("the daemon is starting or stopping".into()));
    }
    let silent = silent_disks(&manager, READY_WITHIN).await;
    if silent.is_empty() {
        Ok("ok\n")
    } else {
        Err(not_ready(format!("the storage of these disks does not answer: {}", silent.join(", "))))
    }
}

/// Reads the export's first and last block as a client does, but is no news in the log.
async fn check_export(State(api): State<Api>, Path(name): Path<String>) -> Answer<schema::Check> {
    let Some(export) = api.manager.export(&name) else {
        let exports = api.manager.exports().map(|export| export.plan.name.as_str());
        return Err(Problem::unknown("unknown_export", "export", &name, exports));
    };
    let name = export.plan.name.clone();
    let outcome = api.checks.ask(&name, || {
        let (server, name) = (Arc::clone(&api.server), name.clone());
        async move { selftest::run(&server, &name).await }
    });
    outcome.await.map_err(|wrong| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unreadable", wrong))?;
    Ok(Json(schema::Check { name, readable: true }))
}

async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let text = snapshot::render(&api.manager, &api.folders)
        .await
        .ok_or_else(|| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "the daemon is stopping"))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn disk(State(manager): Managed, NamedDisk(disk): NamedDisk) -> Json<schema::Disk> {
    Json(view::disk(&manager, &disk))
}

async fn throttle(NamedDisk(disk): NamedDisk) -> Json<schema::Throttle> {
    Json(view::throttle(&disk))
}

async fn put_throttle(admin: Admin, NamedDisk(disk): NamedDisk, body: Body) -> Answer<schema::Throttle> {
    let limits = limits(&body?)?;
    disk.throttle.set_limits(limits);
    let Admin(Peer { uid, pid }) = admin;
    tracing::info!(diskchain.disk = disk.plan.name, uid, pid, "limits were changed");
    Ok(Json(view::throttle(&disk)))
}

async fn group(State(manager): Managed, Path(name): Path<String>) -> Answer<schema::Group> {
    find_group(&manager, &name)?;
    Ok(Json(view::group(&manager, &name)))
}

async fn put_group(
    admin: Admin,
    State(manager): Managed,
    Path(name): Path<String>,
    body: Body,
) -> Answer<schema::Group> {
    let group = find_group(&manager, &name)?;
    group.set_limits(limits(&body?)?);
    let Admin(Peer { uid, pid }) = admin;
    tracing::info!(group = name, uid, pid, "limits were changed");
    Ok(Json(view::group(&manager, &name)))
}

fn limits(body: &[u8]) -> Result<Limits, Problem> {
    let words: Words = serde_json::from_slice(body).map_err(|error| {
        let detail = format!("the body is not a JSON object of limits: {error}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_json", detail)
    })?;
    words.limits().map_err(Problem::invalid_limits)
}

fn find_group<'a>(manager: &'a Manager, name: &str) -> Result<&'a Group, Problem> {
    let groups = manager.groups();
    let unknown =
        || Problem::unknown("unknown_group", "throttle group", name, groups.keys().map(String::as_str));
    groups.get(name).ok_or_else(unknown)
}

/// The disk that the path names.
struct NamedDisk(Arc<Disk>);

impl FromRequestParts<Api> for NamedDisk {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Problem> {
        let Path(name) = Path::<String>::from_request_parts(parts, api).await?;
        let names = api.manager.disks().map(|disk| disk.plan.name.as_str());
        let disk = api.manager.disk(&name).cloned();
        disk.map(NamedDisk).ok_or_else(|| Problem::unknown("unknown_disk", "disk", &name, names))
    }
}

/// A client that may change things.
struct Admin(Peer);

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let ConnectInfo(peer) = ConnectInfo::<Peer>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::new(StatusCode::FORBIDDEN, "forbidden", "it cannot be told who asks"))?;
        let ours = rustix::process::geteuid();
        if peer.uid == 0 || peer.uid == ours.as_raw() {
            return Ok(Admin(peer));
        }
        let detail = format!(
            "user {} may look; only the super-user and the daemon's own user ({}) may change anything",
            peer.uid,
            ours.as_raw()
        );
        Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail))
    }
}

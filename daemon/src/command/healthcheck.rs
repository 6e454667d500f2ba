//! `diskchain healthcheck`: whether the running daemon serves: it greets on its socket, and reads every export through
//! the code that serves clients.
//!
//! Invariant: it ends within [`WITHIN`], only a daemon whose disks can be read is healthy, and one that is healthy logs
//! nothing of it at its usual level.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use diskchain_config::plan::Listen;

use super::daemon::{DaemonArgs, refused};
use super::output::fail;
use crate::control::client;
use crate::control::schema::{Check, Export, Status};
use crate::exit::Exit;
use crate::selftest;

/// Less than the ten seconds that a container's health check usually has.
const WITHIN: Duration = Duration::from_secs(8);

/// Arguments of `diskchain healthcheck`.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// Runs `diskchain healthcheck`.
pub async fn run(args: HealthcheckArgs) -> Exit {
    let socket = args.daemon.socket();
    let healthy = tokio::time::timeout(WITHIN, check(&socket)).await;
    match healthy.unwrap_or_else(|_| Err(fail(Exit::Failed, format!("no answer within {WITHIN:?}")))) {
        Ok(()) => Exit::Ok,
        // A health check knows two ends only.
        Err(_) => Exit::Failed,
    }
}

async fn check(socket: &Path) -> Result<(), Exit> {
    let said = |failure: client::Failure| refused(&failure);
    client::ready(socket).await.map_err(said)?;
    let status: Status = client::get(socket, "/v1/status").await.map_err(said)?;
    // Clients may come by sockets that have no address to be reached at.
    if let Some(address) = status.listen.iter().find_map(|text| Listen::parse(text, Path::new("/")).ok()) {
        let greeted = tokio::task::spawn_blocking(move || greet(&address)).await;
        let greeted = greeted.unwrap_or_else(|_| Err(std::io::Error::other("interrupted")));
        greeted.map_err(|error| fail(Exit::Failed, format!("no greeting for clients: {error}")))?;
    }
    let exports: Vec<Export> = client::get(socket, "/v1/exports").await.map_err(said)?;
    for export in exports {
        let connections = &export.connections;
        if connections.max.is_some_and(|most| connections.unix + connections.tcp >= most.into()) {
            // Full: whoever is connected is being served.
            continue;
        }
        // The daemon reads for itself: a client that came by its socket would be in its log each time.
        let path = format!("/v1/exports/{}/check", client::segment(&export.name));
        client::get::<Check>(socket, &path).await.map_err(said)?;
    }
    Ok(())
}

fn greet(address: &Listen) -> std::io::Result<()> {
    match address {
        Listen::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(WITHIN))?;
            stream.set_write_timeout(Some(WITHIN))?;
            selftest::greet(stream)
        }
        Listen::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port))?;
            stream.set_read_timeout(Some(WITHIN))?;
            stream.set_write_timeout(Some(WITHIN))?;
            selftest::greet(stream)
        }
    }
}

//! `diskchain healthcheck`: whether the running daemon serves, asked as its clients would.
//!
//! Invariant: it ends within [`WITHIN`], and only a daemon whose disks can be read is healthy.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use diskchain_config::plan::Listen;

use super::daemon::{DaemonArgs, refused};
use super::output::fail;
use crate::control::client;
use crate::control::schema::{Export, Status};
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
    let exports: Vec<Export> = client::get(socket, "/v1/exports").await.map_err(said)?;
    let Some(address) = status.listen.iter().find_map(|text| Listen::parse(text, Path::new("/")).ok()) else {
        // Clients come by sockets that have no address to be reached at.
        return Ok(());
    };
    for export in exports {
        let connections = &export.connections;
        if connections.max.is_some_and(|most| connections.unix + connections.tcp >= most.into()) {
            // Full: whoever is connected is being served.
            continue;
        }
        let (name, address) = (export.name.clone(), address.clone());
        let read = tokio::task::spawn_blocking(move || read(&address, &name)).await;
        let read = read.unwrap_or_else(|_| Err(std::io::Error::other("interrupted")));
        read.map_err(|error| fail(Exit::Failed, format!("export {}: {error}", export.name)))?;
    }
    Ok(())
}

fn read(address: &Listen, export: &str) -> std::io::Result<()> {
    match address {
        Listen::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(WITHIN))?;
            stream.set_write_timeout(Some(WITHIN))?;
            selftest::read_ends(stream, export)
        }
        Listen::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port))?;
            stream.set_read_timeout(Some(WITHIN))?;
            stream.set_write_timeout(Some(WITHIN))?;
            selftest::read_ends(stream, export)
        }
    }
}

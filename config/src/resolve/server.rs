//! `[server]`: addresses that do not collide and limits that fit together.

use std::num::NonZeroU32;

use crate::codes;
use crate::diagnostics::Finding;
use crate::load::DefaultSockets;
use crate::plan::{IoEngine, Listen, Server};
use crate::shape::Settings;
use crate::source::{At, Span};

/// The server without its default export, which needs the exports to be known.
pub(super) fn server(settings: &Settings, sockets: &DefaultSockets, findings: &mut Vec<Finding>) -> Server {
    let written: Option<At<Vec<At<Listen>>>> = settings.written("listen");
    let listen = written.map(|at| at.value);
    let insecure = settings.written::<bool>("insecure");
    check_addresses(listen.as_deref().unwrap_or_default(), insecure.as_ref(), settings, findings);
    check_memory(settings, findings);

    let control = match settings.written("control") {
        Some(at) => at.value,
        None => Some(sockets.control.clone()),
    };
    Server {
        listen: match listen {
            Some(listen) => listen.into_iter().map(|at| at.value).collect(),
            None => sockets.listen(),
        },
        control,
        image_dirs: paths(settings, "image_dirs"),
        default_export: None,
        list_exports: settings.value("list_exports"),
        max_connections: count(settings, "max_connections"),
        max_request_size: settings.value::<u64>("max_request_size").try_into().unwrap_or(u32::MAX),
        max_buffer_memory: settings.value("max_buffer_memory"),
        handshake_timeout: settings.value("handshake_timeout"),
        drain_timeout: settings.value("drain_timeout"),
        busy_poll: settings.value("busy_poll"),
        io_engine: settings.word("io_engine", IoEngine::from_word),
        insecure: settings.value("insecure"),
    }
}

/// A list of paths without their places.
pub(super) fn paths(settings: &Settings, name: &str) -> Vec<std::path::PathBuf> {
    settings.value::<Vec<At<_>>>(name).into_iter().map(|at| at.value).collect()
}

/// A number whose kind starts at 1 and ends below 2^32.
pub(super) fn count(settings: &Settings, name: &str) -> NonZeroU32 {
    let number = u32::try_from(settings.value::<u64>(name)).ok().and_then(NonZeroU32::new);
    number.expect("the kind of the key keeps it between 1 and 2^32")
}

fn check_addresses(
    listen: &[At<Listen>],
    insecure: Option<&At<bool>>,
    settings: &Settings,
    findings: &mut Vec<Finding>,
) {
    for (i, address) in listen.iter().enumerate() {
        if let Some(first) = listen[..i].iter().find(|earlier| earlier.value == address.value) {
            findings.push(
                Finding::new(&codes::SOCKET_TWICE, format!("`{}` stands twice in `listen`", address.value))
                    .at(address.span, "again here")
                    .at(first.span, "first here"),
            );
        }
        if !address.value.is_local() {
            findings.extend(open_to_network(address, insecure, settings));
        }
    }
    if let Some(At { value: Some(control), span }) = settings.written("control")
        && let Some(nbd) = listen.iter().find(|address| address.value == Listen::Unix(control.clone()))
    {
        findings.push(
            Finding::new(&codes::SOCKET_TWICE, "`control` and `listen` name the same socket")
                .at(span, "the control API")
                .at(nbd.span, "NBD clients"),
        );
    }
}

fn open_to_network(
    address: &At<Listen>,
    insecure: Option<&At<bool>>,
    settings: &Settings,
) -> Option<Finding> {
    match insecure {
        Some(At { value: true, span }) => Some(
            Finding::new(&codes::OPEN_TO_NETWORK, format!("`{}` is open to the network", address.value))
                .at(address.span, "whoever reaches it can read and write the disks")
                .at(*span, "allowed here"),
        ),
        // Said wrongly, and reported as such.
        None if settings.has("insecure") => None,
        _ => Some(
            Finding::new(&codes::INSECURE, format!("`{}` is not on the loopback interface", address.value))
                .at(address.span, "whoever reaches it can read and write the disks")
                .help(
                    "listen on \"tcp:127.0.0.1:10809\" or a Unix socket, or say insecure = true in [server]",
                ),
        ),
    }
}

fn check_memory(settings: &Settings, findings: &mut Vec<Finding>) {
    let (request, memory) = ("max_request_size", "max_buffer_memory");
    if settings.is_broken(request) || settings.is_broken(memory) {
        return;
    }
    if settings.value::<u64>(request) > settings.value::<u64>(memory) {
        let mut finding =
            Finding::new(&codes::REQUEST_ABOVE_MEMORY, format!("`{request}` is above `{memory}`"));
        let places: [(Option<Span>, &str); 2] =
            [(settings.place(request), "one request"), (settings.place(memory), "all requests together")];
        for (span, label) in places {
            if let Some(span) = span {
                finding = finding.at(span, label);
            }
        }
        findings.push(finding.help("the defaults are \"32MiB\" and \"256MiB\""));
    }
}

//! What a client or the daemon's own bounds could turn into harm: memory shares, and the sandbox around the process.

use diskchain_tests::chain::{Base, Chain};
use diskchain_tests::client::Request;
use diskchain_tests::server::Server;

const MIB: u64 = 1 << 20;

/// A served 64 MiB VDI, with `server` lines in its config.
fn served(server: &str) -> (Chain, Server) {
    let chain = Chain::new(Base::Vdi, 64 * MIB);
    let config = chain.config().replace("[server]\n", &format!("[server]\n{server}\n"));
    let server = Server::diskchain_config(chain.dir(), &config);
    (chain, server)
}

#[test]
fn a_write_larger_than_a_clients_share_of_the_memory_goes_through() {
    // A quarter of the memory is what one client may hold.
    let (_chain, server) = served("max_request_size = \"2MiB\"\nmax_buffer_memory = \"2MiB\"");
    let mut client = server.connect("");
    for at in 0..4 {
        client.write(at * 2 * MIB, &vec![at as u8 + 1; 2 << 20]).expect("a write of all the memory");
    }
    assert!(client.read(2 * MIB, 2 << 20).expect("read").iter().all(|byte| *byte == 2));
    client.disconnect().expect("a clean goodbye");
    server.stop();
}

#[test]
fn a_burst_of_reads_beyond_the_memory_of_a_client_is_answered_to_the_last() {
    let (_chain, server) = served("max_request_size = \"1MiB\"\nmax_buffer_memory = \"1MiB\"");
    let mut client = server.connect("");
    client.write(0, &vec![7; MIB as usize]).expect("write what is read");
    for _ in 0..20 {
        for _ in 0..40 {
            client.send(&Request::Read { offset: 0, len: 200 << 10 }).expect("send");
        }
        while client.in_flight() > 0 {
            let (_, data) = client.receive().expect("a reply");
            assert!(data.expect("data").iter().all(|byte| *byte == 7));
        }
    }
    client.disconnect().expect("a clean goodbye");
    server.stop();
}

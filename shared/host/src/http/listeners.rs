//! The sockets of a port: clients of both families of addresses reach it.
//!
//! Promise: a port on loopback is reached from this machine alone, and a name such as `localhost`, which may stand for an
//! address of either family, reaches it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::serve::Listener;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tracing::info;

/// Connections that wait to be served, at most: as many as are served at a time. The system drops further ones.
const LISTEN_BACKLOG: u32 = 1024;

#[derive(Debug)]
pub(crate) struct Listeners {
    first: TcpListener,
    second: Option<TcpListener>,
}

/// Listens at an address. The wildcard of either family is one socket for clients of both, and loopback of either family
/// is a socket for each. A host may lack a family, and the other one serves then.
///
/// # Errors
/// If nothing can listen there, or a program listens at the same port of the other family.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<Listeners> {
    let ip = addr.ip().to_canonical();
    if ip == IpAddr::from(Ipv4Addr::UNSPECIFIED) {
        match bind((Ipv6Addr::UNSPECIFIED, addr.port()).into()) {
            Ok(first) => return Ok(first.into()),
            Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(error),
            Err(error) => info!("{addr} serves IPv4 only, because this host has no IPv6: {error}"),
        }
    }
    let first = bind(addr)?;
    let other = match ip {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => IpAddr::from(Ipv6Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => IpAddr::from(Ipv4Addr::LOCALHOST),
        _ => return Ok(first.into()),
    };
    match bind((other, first.local_addr()?.port()).into()) {
        Ok(second) => Ok(Listeners { first, second: Some(second) }),
        // A free port was asked for, and it is free for one family. The next one differs, because `first` has this one.
        Err(error) if error.kind() == ErrorKind::AddrInUse && addr.port() == 0 => listen(addr),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Err(error),
        Err(error) => {
            info!("{addr} is not served on {other}: {error}");
            Ok(first.into())
        }
    }
}

/// A socket with a backlog of [`LISTEN_BACKLOG`]; tokio's own listener has a backlog of 128.
fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if addr.is_ipv6() {
        // `[::]` accepts IPv4 clients too, whatever the system's default.
        SockRef::from(&socket).set_only_v6(false)?;
    }
    // The next process may listen while the last connections of this one are still closing.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(LISTEN_BACKLOG)
}

impl From<TcpListener> for Listeners {
    fn from(first: TcpListener) -> Listeners {
        Listeners { first, second: None }
    }
}

impl Listeners {
    #[cfg(test)]
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.first.local_addr()
    }

    pub(super) async fn accept(&mut self) -> TcpStream {
        let Some(second) = &mut self.second else {
            return Listener::accept(&mut self.first).await.0;
        };
        tokio::select! {
            (stream, _) = Listener::accept(&mut self.first) => stream,
            (stream, _) = Listener::accept(second) => stream,
        }
    }

    /// The connections that wait in the backlog. Dropping a listener would reset them and lose their requests.
    pub(super) fn accept_backlog(self) -> impl Iterator<Item = TcpStream> {
        [Some(self.first), self.second].into_iter().flatten().flat_map(|listener| {
            let listener = listener.into_std().ok();
            std::iter::from_fn(move || {
                let (stream, _) = listener.as_ref()?.accept().ok()?;
                stream.set_nonblocking(true).ok()?;
                TcpStream::from_std(stream).ok()
            })
        })
    }
}

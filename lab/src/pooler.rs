//! A proxy before PostgreSQL that drops the settings in a client's startup message, as connection
//! poolers do.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::proxy::Server;

/// Starts the proxy, which runs as long as the test.
pub async fn drops_settings_before(server: Server) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(forward(client, server.clone()));
        }
    });
    address
}

async fn forward(mut client: TcpStream, server: Server) -> std::io::Result<()> {
    // The startup message: its length (including these 4 bytes), the version, names and values.
    let mut message = vec![0; usize::try_from(client.read_u32().await?).unwrap() - 4];
    client.read_exact(&mut message).await?;
    let (version, parameters) = message.split_at(4);
    let parameters: Vec<_> =
        parameters.split(|octet| *octet == 0).take_while(|text| !text.is_empty()).collect();
    let kept = parameters.chunks(2).filter(|pair| pair[0] != b"options").flatten();
    let mut message = version.to_vec();
    kept.for_each(|text| message.extend(text.iter().chain(&[0])));
    message.push(0);
    let mut server = server.connect().await?;
    server.write_u32(u32::try_from(message.len() + 4).unwrap()).await?;
    server.write_all(&message).await?;
    copy_bidirectional(&mut client, &mut server).await.map(|_| ())
}

//! A client of HTTP/2.

use std::net::SocketAddr;

use h2::{
    SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use hyper::{HeaderMap, Method, Request, Response, body::Bytes};

use super::rig::PATIENCE;

/// An answer, its body and its trailers.
pub(crate) type Whole = (Response<()>, Vec<u8>, Option<HeaderMap>);

pub(crate) async fn connect(to: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(to).await.unwrap();
    // Room for many small answers at once, which else would be taken for an attack.
    let mut builder = Builder::new();
    builder.initial_connection_window_size(1 << 20);
    let (client, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) fn ask(method: Method, path: &str) -> Request<()> {
    let uri = format!("http://a.example{path}");
    let request = Request::builder().method(method).uri(uri);
    request.body(()).unwrap()
}

/// A call of gRPC.
pub(crate) fn call(path: &str) -> Request<()> {
    let mut request = ask(Method::POST, path);
    let fields = request.headers_mut();
    fields.insert("te", "trailers".parse().unwrap());
    fields.insert("content-type", "application/grpc+proto".parse().unwrap());
    request
}

pub(crate) async fn send(
    client: &SendRequest<Bytes>,
    request: Request<()>,
    is_end: bool,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut ready = client.clone().ready().await.unwrap();
    ready.send_request(request, is_end).unwrap()
}

pub(crate) async fn whole(response: ResponseFuture) -> Result<Whole, h2::Error> {
    let reading = async {
        let (head, mut body) = response.await?.into_parts();
        let mut all = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            all.extend_from_slice(&data);
        }
        let trailers = body.trailers().await?;
        Ok((Response::from_parts(head, ()), all, trailers))
    };
    let answer = tokio::time::timeout(PATIENCE, reading).await;
    answer.expect("an answer in time")
}

/// The answer to a request without a body.
pub(crate) async fn answer(client: &SendRequest<Bytes>, request: Request<()>) -> Whole {
    let (response, _) = send(client, request, true).await;
    whole(response).await.unwrap()
}

//! Exec and attach for a server of another kind, which has read the request's head itself and holds the connection.

use http::{HeaderMap, Method, Uri};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Wanted, negotiate::Protocol, program, program::Program, run_on, switch};
use crate::apiserver::{
    request::{Attributes, Query, Target},
    status::Status,
};

/// An exec, attach or port-forward that is agreed on: what is left is to answer 101, and to run it.
#[derive(Debug)]
pub struct Exec {
    protocol: Protocol,
    wanted: Wanted,
    program: Program,
    headers: HeaderMap,
}

impl Exec {
    /// Reads it off the head of a request. Every pod is there.
    ///
    /// # Errors
    /// What the request is to be answered: it asks for something else, or for no protocol that is known.
    pub fn agree(uri: &Uri, headers: &HeaderMap) -> Result<Self, Status> {
        let target = match Attributes::of(&Method::GET, uri).target {
            Target::Resource(target) if target.resource == "pods" => target,
            _ => return Err(Status::no_such_path()),
        };
        let query = Query::of(uri);
        let protocol = Protocol::negotiate(headers, &target.subresource)?;
        let wanted = Wanted::of(&query);
        Ok(Self {
            protocol,
            wanted,
            program: program(&target, &query, wanted)?,
            headers: switch(protocol, headers)?.headers().clone(),
        })
    }

    /// The headers of the 101.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Runs it to its end on the connection, of which nothing after the request's head has been read.
    pub async fn run<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        run_on(stream, self.protocol, self.wanted, self.program, None).await;
    }
}

//! The API server away and back: killed, stopped, started again with what it held.

use anyhow::{Context as _, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::Child;

use super::{ApiServer, Kind, Mark};

impl ApiServer {
    /// Kills it with SIGKILL: connections break, and new ones are refused.
    ///
    /// # Errors
    /// It is gone already.
    pub async fn kill9(&mut self) -> Result<()> {
        self.process().kill().await.context("killing the API server")
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// It is gone already.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.process().wait().await?;
        Ok(())
    }

    /// Starts it again with the objects that it held, and waits until it is ready. Of requests, the test program has
    /// no memory from before: a [`Mark`] doesn't outlive it. What is returned stands before the first since.
    ///
    /// # Errors
    /// It doesn't become ready within 30 seconds.
    pub async fn start_again(&mut self) -> Result<Mark> {
        let mark = match &mut self.kind {
            Kind::Test(server) => {
                server.start_again()?;
                Mark(0)
            }
            Kind::Real(server) => {
                let mark = server.mark()?;
                server.start_again()?;
                mark
            }
        };
        self.ready().await?;
        Ok(mark)
    }

    /// Stops it where it stands (SIGSTOP): connections stay, and nothing is answered.
    ///
    /// # Errors
    /// It is gone.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It is gone.
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn process(&mut self) -> &mut Child {
        match &mut self.kind {
            Kind::Test(server) => server.process(),
            Kind::Real(server) => server.process(),
        }
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let id = self.process().id().context("the API server has ended")?;
        kill(Pid::from_raw(i32::try_from(id)?), signal).context("signalling the API server")
    }
}

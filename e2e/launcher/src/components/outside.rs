//! The programs that play the systems outside which optional services call.

use anyhow::Result;
use futures::future::BoxFuture;
use tokio::net::TcpStream;

use crate::component::{Component, Context, Kind, Ready, Stage};
use crate::components::service::program;
use crate::description::{OptionalService, StackDescription};
use crate::directories::programs_directory;
use crate::processes::{LaunchCommand, Variables, variables};
use crate::state::StackState;

/// The folder of its data, in its working directory.
const DATA: &str = "data";

struct Outside {
    name: String,
    service: String,
}

pub fn components(description: &StackDescription) -> Vec<Component> {
    let component = |(optional, position): (&OptionalService, u16)| {
        let name = optional.calls.clone();
        let kind = Outside { name: name.clone(), service: optional.name.clone() };
        Component {
            ports: vec![(name.clone(), 20 + position)],
            ready: Ready::Asked,
            ..Component::new(&name, &name, Stage::Service, kind)
        }
    };
    description.optional_parts().map(component).collect()
}

impl Kind for Outside {
    fn environment(&self, state: &StackState) -> Result<Variables> {
        let webhooks = format!("{}/webhooks/{}", state.url(&self.service)?, self.name);
        let mut own = variables([
            ("HTTP_ADDR", state.address(&self.name)?),
            ("DIRECTORY", DATA.to_string()),
            ("WEBHOOK_URL", webhooks),
            ("WEBHOOK_SECRET", state.secrets()?.webhook_secret(&self.name)?),
        ]);
        let ca = state.ca()?;
        own.extend(ca.map(|ca| ("CA_FILE".to_string(), ca.display().to_string())));
        Ok(own)
    }

    fn command<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<LaunchCommand>> {
        Box::pin(async move { program(&programs_directory()?, &self.name, "serve") })
    }

    /// It accepts connections. It is not encrypted in a secured stack either.
    fn check_ready<'a>(&'a self, state: &'a StackState) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { Ok(TcpStream::connect(state.address(&self.name)?).await.map(drop)?) })
    }
}

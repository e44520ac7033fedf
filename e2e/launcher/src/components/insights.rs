//! The stream processors, such as insights: programs in Java that the checkout has as Maven projects.

use anyhow::Result;
use futures::future::BoxFuture;

use crate::artifacts::maven_project::MavenProject;
use crate::component::{Component, Context, Kind, Stage};
use crate::description::StackDescription;
use crate::processes::{LaunchCommand, Variables, variables};
use crate::state::StackState;

/// The folder of its state, in its working directory.
const STATE: &str = "state";

struct StreamProcessor {
    name: String,
}

pub fn components(description: &StackDescription) -> Vec<Component> {
    let component = |(name, position): (&String, u16)| {
        let port = |end: &str, offset: u16| (format!("{name}{end}"), offset + position);
        Component {
            belongs_to: |state| state.streams,
            ports: vec![port("", 20), port("-probe", 1020), port("-kafka", 1030)],
            data: STATE,
            ..Component::new(name, "java", Stage::Flow, StreamProcessor { name: name.clone() })
        }
    };
    description.stream_processors.iter().zip(0..).map(component).collect()
}

impl Kind for StreamProcessor {
    fn environment(&self, state: &StackState) -> Result<Variables> {
        let mut own = variables([
            ("HTTP_ADDR", state.address(&self.name)?),
            ("PROBE_ADDR", state.address(&format!("{}-probe", self.name))?),
            ("STATE_DIRECTORY", STATE.to_string()),
        ]);
        own.extend(state.variables_of_client(&self.name)?);
        Ok(own)
    }

    /// It is compiled first, if its sources have changed.
    fn command<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<LaunchCommand>> {
        Box::pin(async move {
            let root = &context.description.root;
            let project = MavenProject::build_missing(root, &self.name).await?;
            project.command(&context.process.home)
        })
    }
}

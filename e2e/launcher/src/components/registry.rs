//! The schema registry: Apicurio Registry, with its data in an H2 database.

use anyhow::Result;
use futures::future::BoxFuture;

use crate::artifacts;
use crate::artifacts::java::java;
use crate::component::{Component, Context, Kind, Ready, Stage};
use crate::description::{HOST, StackDescription};
use crate::processes::{LaunchCommand, Variables, variables};
use crate::secrets::{REGISTRY, registry_tokens};
use crate::state::StackState;

struct Registry;

pub fn components(_description: &StackDescription) -> Vec<Component> {
    vec![Component {
        ports: vec![(REGISTRY.to_string(), 81)],
        ready: Ready::Api("/apis/ccompat/v7/subjects"),
        class_archive: Some(REGISTRY),
        ..Component::new(REGISTRY, "java", Stage::Infrastructure, Registry)
    }]
}

impl Registry {
    /// The settings of its server, and in a secured stack of who may write.
    fn settings(&self, state: &StackState) -> Result<Vec<String>> {
        let (port, host) = (state.ports.get(REGISTRY)?, format!("-Dquarkus.http.host={HOST}"));
        if !state.secure {
            return Ok(vec![host, format!("-Dquarkus.http.port={port}")]);
        }
        let certificate = state.secrets()?.certificate(REGISTRY)?;
        let certificate = certificate.display();
        let mut settings = vec![
            host,
            "-Dquarkus.http.insecure-requests=disabled".to_string(),
            format!("-Dquarkus.http.ssl-port={port}"),
            format!("-Dquarkus.http.ssl.certificate.files={certificate}"),
            format!("-Dquarkus.http.ssl.certificate.key-files={certificate}"),
            // The shortest that it accepts.
            "-Dquarkus.http.ssl.certificate.reload-period=30s".to_string(),
        ];
        settings.extend(registry_tokens::settings(&state.secrets()?.registry_key()?)?);
        Ok(settings)
    }
}

impl Kind for Registry {
    fn environment(&self, _state: &StackState) -> Result<Variables> {
        Ok(variables([
            ("QUARKUS_OTEL_SDK_DISABLED", "true".to_string()),
            // In its working directory. A commit reaches the disk before its response; H2's default delay is up to half
            // a second.
            ("APICURIO_DATASOURCE_URL", "jdbc:h2:file:./data/registry;WRITE_DELAY=0".to_string()),
            ("APICURIO_DATASOURCE_JDBC_INITIAL_SIZE", "2".to_string()),
            ("APICURIO_DATASOURCE_JDBC_MIN_SIZE", "2".to_string()),
        ]))
    }

    fn command<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<LaunchCommand>> {
        Box::pin(async move {
            let artifacts = artifacts::fetched().await?;
            let mut command = java(REGISTRY, &context.process.home)?;
            command.add(artifacts.class_archive_option(REGISTRY, context.archives_classes)?);
            command.add(self.settings(context.state)?);
            command.add(["-jar".to_string(), artifacts.registry_jar.display().to_string()]);
            Ok(command)
        })
    }
}

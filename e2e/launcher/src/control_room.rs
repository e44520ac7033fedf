//! The control room of a stack: the program `console`, with pages for operators. It asks the services over HTTP, and
//! nothing depends on it.

use std::fs;

use anyhow::{Context, Result};

use crate::control_server::CONTROL_SECRET;
use crate::ports::{ConsolePorts, InstancePorts};
use crate::process::LaunchCommand;
use crate::secrets::CONSOLE;
use crate::stack::Stack;
use crate::stack_state::StackState;
use crate::topology::{Component, HOST};

/// The file with the settings with which it was started, in its directory.
const SETTINGS_FILE: &str = "settings";

impl StackState {
    pub fn console_ports(&self) -> Result<&ConsolePorts> {
        self.ports.console.as_ref().context("the stack has no control room")
    }

    /// The variables of the control room: its ports, the ports of every instance, and the stream processors.
    pub fn console_environment(&self) -> Result<Vec<(String, String)>> {
        let ports = self.console_ports()?;
        let (http, scheme) = ("http", self.http_scheme());
        let mut variables = vec![
            ("HTTP_ADDR", format!("{HOST}:{}", ports.pages)),
            ("PROBE_ADDR", format!("{HOST}:{}", ports.probe)),
            ("API_URLS", self.urls(scheme, |ports| ports.api)?),
            ("ADMIN_URLS", self.urls(scheme, |ports| ports.admin)?),
            ("PROBE_URLS", self.urls(http, |ports| ports.probe)?),
        ];
        let streams = self.streams_urls().into_iter();
        let streams = streams.map(|(name, url)| (format!("{}_URL", name.to_uppercase()), url));
        if !self.secure {
            let token = self.secrets()?.password_file(CONTROL_SECRET)?;
            variables.extend([
                ("DEMO", "1".to_string()),
                ("LAUNCHER_URL", format!("{http}://{HOST}:{}", ports.control)),
                ("LAUNCHER_TOKEN_FILE", token.display().to_string()),
            ]);
        } else {
            let secrets = self.secrets()?;
            let certificate = secrets.certificate(CONSOLE)?.display().to_string();
            variables.extend([
                ("SECURE", "1".to_string()),
                ("SIGN_IN", "1".to_string()),
                ("SSL_CERT_FILE", secrets.ca()?.display().to_string()),
                ("HTTP_TLS_CERTIFICATE_LOCATION", certificate.clone()),
                ("HTTP_TLS_KEY_LOCATION", certificate),
            ]);
        }
        let variables = variables.into_iter().map(|(name, value)| (name.to_string(), value));
        Ok(variables.chain(streams).collect())
    }

    /// One port of every instance, as in `a=http://127.0.0.1:9001,a=http://127.0.0.1:9101`.
    fn urls(&self, scheme: &str, port: impl Fn(&InstancePorts) -> u16) -> Result<String> {
        let mut urls = Vec::new();
        for service in self.ports.services.keys() {
            for name in self.instances_of(service) {
                let port = port(self.instance_ports(&name)?);
                urls.push(format!("{service}={scheme}://{HOST}:{port}"));
            }
        }
        Ok(urls.join(","))
    }
}

impl Stack {
    /// The pages of the control room, such as `http://127.0.0.1:8000`.
    ///
    /// # Errors
    /// If the stack has none.
    pub fn console_url(&self) -> Result<String> {
        let state = self.state()?;
        Ok(format!("{}://{HOST}:{}", state.http_scheme(), state.console_ports()?.pages))
    }

    /// Notes the settings with which the control room starts.
    pub(crate) fn note_console_settings(&self, launch: &LaunchCommand) -> Result<()> {
        let file = self.process(&Component::Console).home.join(SETTINGS_FILE);
        Ok(fs::write(file, format!("{:?}", launch.environment))?)
    }

    /// Starts the control room again if it runs and does not know an instance, or knows one too many.
    pub(crate) async fn refresh_console(&self) -> Result<()> {
        let process = self.process(&Component::Console);
        if !self.description().console || process.running().is_none() {
            return Ok(());
        }
        let settings = format!("{:?}", self.state()?.environment_of(&Component::Console)?);
        if fs::read_to_string(process.home.join(SETTINGS_FILE)).is_ok_and(|it| it == settings) {
            return Ok(());
        }
        self.stop_component(&Component::Console).await?;
        self.start_component(&Component::Console).await
    }
}

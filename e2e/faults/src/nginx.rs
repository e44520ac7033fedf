//! A real nginx in front of a service. The system must provide the program (Debian: `nginx-light`).

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use launcher::{HOST, Stack, eventually, free_port};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// One process of nginx, which ends when this is dropped.
pub struct Nginx {
    /// Its URL, without a slash at the end.
    pub url: String,
    directory: PathBuf,
    _process: Child,
}

impl Nginx {
    /// The program, if the system has it.
    pub fn program() -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let sbin = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
        let folders = std::env::split_paths(&path).chain(sbin);
        folders.map(|folder| folder.join("nginx")).find(|program| program.is_file())
    }

    /// Starts nginx with these `upstream` and `location` blocks, and with defaults for everything
    /// else. Its files are in the stack's directory.
    ///
    /// # Errors
    /// If nginx is not installed, or if it does not listen within 10 s.
    pub async fn start(stack: &Stack, upstreams: &str, locations: &str) -> Result<Nginx> {
        let program = Nginx::program().context("there is no nginx")?;
        let port = free_port()?;
        let directory = stack.directory().join(format!("nginx-{port}"));
        std::fs::create_dir_all(&directory)?;
        let file = directory.join("nginx.conf");
        let log = directory.join("error.log");
        let folder = directory.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|of| format!("{of}_temp_path {folder}/{of};\n"))
            .concat();
        let settings = format!(
            "daemon off; master_process off; pid {folder}/pid;\n\
             events {{ worker_connections 2048; }}\n\
             http {{\naccess_log off;\n{temporary}{upstreams}\n\
             server {{\nlisten {HOST}:{port};\n{locations}\n}}\n}}\n"
        );
        std::fs::write(&file, settings)?;
        let process = Command::new(program)
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let nginx = Nginx { url: format!("http://{HOST}:{port}"), directory, _process: process };
        eventually("nginx to listen", START_TIMEOUT, async || {
            let listens = TcpStream::connect((HOST, port)).await.is_ok();
            ensure!(listens, "{}", std::fs::read_to_string(&log).unwrap_or_default());
            Ok(())
        })
        .await?;
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

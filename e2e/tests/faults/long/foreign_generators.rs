//! Clients that generators of other projects make of the description of an API read the answers of a later version.

use std::path::{Path, PathBuf};
use std::process::Command;

use axum::Router;
use axum::routing::get;
use e2e::stack_description::checkout;
use serde_json::{Value, json};

use super::foreign_client::install;
use super::*;

const OAPI_CODEGEN: &str = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.5.0";
const ORDER_ID: &str = "01900000-0000-7000-8000-000000000001";

/// An order of a version in which each enumeration has a further value, and an order a further field.
fn later_order() -> Value {
    json!({
        "order_id": ORDER_ID, "customer_id": Uuid::now_v7(), "status": "parked", "reason": "weather",
        "payment": "escrowed", "stock": "rented", "total_cents": 1, "currency": "EUR", "lines": [],
        "created_at": "2026-01-01T00:00:00Z", "ended_at": null, "colour": "red",
    })
}

/// The folder of the generated clients.
struct Clients(PathBuf);

impl Clients {
    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.0);
        command
    }

    fn document() -> String {
        checkout().join("services/order/openapi.json").display().to_string()
    }

    fn generate_in_python(&self, programs: &Path) -> Result<()> {
        let document = Self::document();
        let mut client = self.command(programs.join("openapi-python-client"));
        client.args(["generate", "--meta", "none", "--output-path", "client", "--overwrite"]);
        succeed(client.args(["--path", &document]))?;
        let mut models = self.command(programs.join("datamodel-codegen"));
        models.args(["--input", &document, "--input-file-type", "openapi"]);
        models.args(["--output-model-type", "pydantic_v2.BaseModel", "--output", "models.py"]);
        succeed(&mut models).map(drop)
    }

    fn generate_in_go(&self) -> Result<()> {
        let document = Self::document();
        let mut generator = self.command("go");
        generator.args(["run", OAPI_CODEGEN, "-generate", "types,client", "-package", "api"]);
        let generated = succeed(generator.arg(&document))?;
        std::fs::create_dir_all(self.0.join("api"))?;
        std::fs::write(self.0.join("api/api.go"), generated)?;
        succeed(self.command("go").args(["build", "-o", "reader"])).map(drop)
    }
}

/// The output of a command.
fn succeed(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {errors}");
    Ok(output.stdout)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and fetches three generators: make faults"]
async fn generated_clients_read_an_order_whose_values_a_later_version_added() -> Result<()> {
    let python = checkout().join("target/foreign-generators/bin/python");
    let list = "e2e/foreign_generators/requirements.txt";
    if !python.exists()
        && let Err(error) = install(&python, list)
    {
        return skip_or_fail(&format!("there are no generators in Python: {error:#}"));
    }
    if let Err(error) = succeed(Command::new("go").arg("version")) {
        return skip_or_fail(&format!("there is no Go: {error:#}"));
    }
    let clients = Clients(checkout().join("target/foreign-generators/clients"));
    let _ = std::fs::remove_dir_all(&clients.0);
    std::fs::create_dir_all(&clients.0)?;
    for file in ["read_order.py", "main.go", "go.mod", "go.sum"] {
        let from = checkout().join("e2e/foreign_generators").join(file);
        std::fs::copy(from, clients.0.join(file))?;
    }
    clients.generate_in_python(python.parent().context("a folder")?)?;
    clients.generate_in_go()?;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let answer = get(async || axum::Json(later_order()));
    let router = Router::new().route("/orders/{id}", answer);
    tokio::spawn(async { axum::serve(listener, router).await });

    let read = succeed(clients.command(&python).args(["read_order.py", &url, ORDER_ID]))?;
    let in_go = succeed(clients.command(clients.0.join("reader")).args([&url, ORDER_ID]))?;
    let orders = [read, in_go].concat();
    let orders = serde_json::Deserializer::from_slice(&orders).into_iter::<Value>();
    let orders: Vec<Value> = orders.collect::<Result<_, _>>()?;
    ensure!(orders.len() == 3, "{orders:?}");
    for order in orders {
        for (field, value) in [
            ("status", "parked"),
            ("reason", "weather"),
            ("payment", "escrowed"),
            ("stock", "rented"),
        ] {
            ensure!(order[field] == value, "{field} of {order}");
        }
        ensure!(order["ended_at"].is_null(), "{order}");
    }
    Ok(())
}

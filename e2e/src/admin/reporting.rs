//! The reporting database: its tables, the connectors that write them, and the report that reads them.

use anyhow::{Context, Result, ensure};
use launcher::{ConnectorConfig, FurtherDatabase, Stack};
use sqlx::{AssertSqlSafe, Column, Connection, PgConnection, Row};

use crate::console::print_lines;

/// Its name: that of the database, of the role that writes it, and of the folder of its files.
pub const NAME: &str = "reporting";

/// The service beside whose database it is.
pub const BESIDE: &str = "order";

/// The connectors, by their names.
pub const CONNECTORS: [(&str, &str); 3] = [
    (
        "reporting-orders",
        include_str!("../../../services/reporting/connectors/reporting-orders.json"),
    ),
    (
        "reporting-sales",
        include_str!("../../../services/reporting/connectors/reporting-sales.json"),
    ),
    (
        "reporting-outcomes",
        include_str!("../../../services/reporting/connectors/reporting-outcomes.json"),
    ),
];

const TABLES: &str = include_str!("../../../services/reporting/database.sql");
const REPORT: &str = include_str!("../../../services/reporting/report.sql");

/// Where the registry has the API of the converter, in place of the one of the services.
const SERVICES_API: &str = "/apis/ccompat/v7";
const CONVERTER_API: &str = "/apis/registry/v2";

/// The setting of the converter for the file of the authority that it trusts, in place of those of Java.
const CONVERTER_CA: &str = "value.converter.apicurio.rest.request.ssl.ca-bundle.location";

/// Whether the variable `REPORTING` asks for the reporting database: it is `1` or `true`.
pub fn is_wanted() -> bool {
    std::env::var("REPORTING").is_ok_and(|value| ["1", "true"].contains(&value.as_str()))
}

/// Adds Kafka Connect with the plugins of the connectors, which start with the next `up`.
///
/// # Errors
/// If the stack is not native.
pub async fn add(stack: &Stack) -> Result<()> {
    stack.add_feature(NAME, &CONNECTORS.map(|(name, _)| name.to_string()))?;
    stack.connect_with_plugins_of(NAME).await
}

/// Creates the database with its tables and the connectors, or changes the connectors to what their files say, and waits
/// until they run. It can be repeated.
///
/// # Errors
/// If a connector does not run.
pub async fn apply(stack: &Stack) -> Result<()> {
    let database = stack.further_database(BESIDE, NAME).await?;
    create_tables(&database.owner_url).await?;
    for (name, text) in CONNECTORS {
        let config = configuration(stack, &database, text)?;
        stack.apply_connector(name, &config).await.with_context(|| name.to_string())?;
    }
    Ok(())
}

/// The settings of a connector. The file names what differs between deployments by variables of the worker: here it is
/// put in their place.
fn configuration(stack: &Stack, database: &FurtherDatabase, text: &str) -> Result<ConnectorConfig> {
    let registry = stack.registry_url()?.replace(SERVICES_API, CONVERTER_API);
    let values = [
        ("${env:REPORTING_DATABASE_URL}", database.jdbc_url.as_str()),
        ("${env:REPORTING_DATABASE_PASSWORD}", database.password_reference.as_str()),
        ("${env:REPORTING_REGISTRY_URL}", registry.as_str()),
        // The topic exists by then.
        ("${env:REPORTING_REPLICATION}", "1"),
    ];
    let text = values
        .iter()
        .fold(text.to_string(), |text, (variable, value)| text.replace(variable, value));
    ensure!(!text.contains("${env:"), "a variable of a connector has no value: {text}");
    let mut config: ConnectorConfig =
        serde_json::from_str(&text).context("the file of a connector is no object")?;
    if let Some(ca) = stack.ca_certificate()? {
        config.insert(CONVERTER_CA.to_string(), ca.display().to_string().into());
    }
    Ok(config)
}

/// Creates the tables in a database, as the role that owns them. It can be repeated.
///
/// # Errors
/// If the database cannot be reached, or refuses the tables.
pub async fn create_tables(owner_url: &str) -> Result<()> {
    let mut db = PgConnection::connect(owner_url).await?;
    sqlx::raw_sql(TABLES).execute(&mut db).await?;
    Ok(db.close().await?)
}

/// The report, as rows of texts; the first row has the names of the columns.
///
/// # Errors
/// If the stack has no reporting database.
pub async fn report(stack: &Stack) -> Result<Vec<Vec<String>>> {
    let database = stack.further_database(BESIDE, NAME).await?;
    let mut db = PgConnection::connect(&database.owner_url).await?;
    // A statement that is not prepared is answered in texts.
    let rows = sqlx::raw_sql(AssertSqlSafe(REPORT.to_string())).fetch_all(&mut db).await?;
    db.close().await?;
    let names = rows.first().map(|row| row.columns().iter().map(|it| it.name().to_string()));
    let mut table: Vec<Vec<String>> = names.map(Iterator::collect).into_iter().collect();
    for row in &rows {
        let values = (0..row.columns().len()).map(|nth| {
            let value = row.try_get_raw(nth)?;
            Ok(value.as_str().unwrap_or_default().to_string())
        });
        table.push(values.collect::<Result<_>>()?);
    }
    Ok(table)
}

/// The report as a table, with the columns under each other.
pub fn print(table: &[Vec<String>]) {
    let columns = table.first().map_or(0, Vec::len);
    let width = |nth: usize| table.iter().map(|row| row[nth].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    print_lines(&table.iter().map(line).collect::<Vec<_>>());
}

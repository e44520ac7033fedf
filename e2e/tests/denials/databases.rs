//! The part of the databases: each role attempts to reach each database, to change its roles and its tables, and to
//! read, add, change and remove rows of each table. Nothing stays, because each attempt is rolled back.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use e2e::stack_description::{SERVICES, stack_description};
use launcher::{Stack, StackDescription};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{Cells, Matrix, compare};
use crate::fixture::stack_permit;

/// The database of each cluster that belongs to no service.
const MAINTENANCE_DATABASE: &str = "postgres";

/// The versions of the migrations, which only a migration changes.
const VERSION_TABLES: [&str; 2] = ["public._sqlx_migrations", "chassis.migrations"];

/// The tables of a service and of the chassis, with the comment that declares the rights of the serving role.
const TABLES: &str = "
    select c.oid::regclass::text, nspname || '.' || relname, coalesce(obj_description(c.oid, 'pg_class'), '')
    from pg_class as c join pg_namespace as n on n.oid = relnamespace
    where relkind in ('r', 'p') and nspname in ('public', 'chassis')";

/// The columns of a table, and whether the serving role may change them in a table that is append-only.
const COLUMNS: &str = "
    select quote_ident(attname), coalesce(col_description(attrelid, attnum) like 'mutable%', false)
    from pg_attribute where attrelid = $1::regclass and attnum > 0 and attgenerated = '' and attidentity = ''
          and not attisdropped";

struct DatabaseTable {
    /// As a statement names it.
    sql_name: String,
    name: String,
    comment: String,
    columns: Vec<(String, bool)>,
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_can_do_in_the_databases_what_is_declared_and_nothing_else() -> Result<()> {
    let _permit = stack_permit().await?;
    let stack = Stack::ephemeral(&StackDescription { secure: true, ..stack_description() })?;
    stack.up_infrastructure().await?;
    let (mut observed, mut expected) = (Matrix::new(), Matrix::new());
    for service in SERVICES {
        stack.migrate(service).await?;
        let tables = read_tables(&stack, service).await?;
        let serving = (service.to_string(), stack.service_database_url(service)?);
        let owner = (format!("{service}_migrator"), stack.owner_database_url(service)?);
        for (role, url) in [&serving, &owner] {
            let is_owner = *role == owner.0;
            for database in SERVICES.into_iter().chain([MAINTENANCE_DATABASE]) {
                let cells = cells(role, "database", database);
                let url = url_of(&stack, url, service, database)?;
                observed.insert(cells.clone(), attempt_in_database(&url).await?);
                expected.insert(cells, declare_database(database == service, is_owner));
            }
            for table in &tables {
                let cells = cells(role, "table", &table.name);
                observed.insert(cells.clone(), attempt_on_table(url, table).await?);
                expected.insert(cells, declare_table(table, is_owner));
            }
        }
    }
    compare(&observed, &expected, "databases.txt")
}

fn cells(identity: &str, kind: &str, name: &str) -> Cells {
    Cells { identity: identity.to_string(), resource: format!("{kind} {name}") }
}

/// The URL of a role's own database, with another database in its place. Each service has a cluster of its own.
fn url_of(stack: &Stack, own: &str, service: &str, database: &str) -> Result<String> {
    let end = |name: &str| format!("/{name}?");
    if database == service {
        return Ok(own.to_string());
    }
    if database == MAINTENANCE_DATABASE {
        return Ok(own.replace(&end(service), &end(database)));
    }
    let address = |url: &str| url.split(['@', '/']).nth(3).map(|it| format!("@{it}/"));
    let other = stack.service_database_url(database)?;
    let (from, to) = (address(own).context("an address")?, address(&other).context("an address")?);
    Ok(own.replace(&from, &to).replace(&end(service), &end(database)))
}

async fn read_tables(stack: &Stack, service: &str) -> Result<Vec<DatabaseTable>> {
    let mut session = PgConnection::connect(&stack.database_url(service)?).await?;
    let rows: Vec<(String, String, String)> =
        sqlx::query_as(TABLES).fetch_all(&mut session).await?;
    let mut tables = Vec::new();
    for (sql_name, name, comment) in rows {
        let columns = sqlx::query_as(COLUMNS).bind(&sql_name).fetch_all(&mut session).await?;
        tables.push(DatabaseTable { sql_name, name, comment, columns });
    }
    Ok(tables)
}

async fn attempt_in_database(url: &str) -> Result<BTreeSet<char>> {
    let mut letters = BTreeSet::new();
    // A wrong password, an unknown role and a database that a role may not enter are one outcome.
    let Ok(mut session) = PgConnection::connect(url).await else { return Ok(letters) };
    letters.insert('c');
    for (letter, statement) in [
        ('t', "create table tried (id int)"),
        ('s', "create schema tried"),
        ('e', "create extension file_fdw"),
        ('o', "create role tried"),
        ('p', "set role postgres"),
        ('f', "select pg_read_file('/etc/hostname')"),
    ] {
        if is_allowed(&mut session, statement).await? {
            letters.insert(letter);
        }
    }
    Ok(letters)
}

async fn attempt_on_table(url: &str, table: &DatabaseTable) -> Result<BTreeSet<char>> {
    let mut session = PgConnection::connect(url).await?;
    let name = &table.sql_name;
    let mut letters = BTreeSet::new();
    for (letter, statement) in [
        ('r', format!("select from {name}")),
        ('i', format!("insert into {name} select from (select 1) as no_row where false")),
        ('d', format!("delete from {name}")),
        ('t', format!("truncate {name} cascade")),
        ('a', format!("alter table {name} add column tried int")),
        ('x', format!("drop table {name} cascade")),
    ] {
        if is_allowed(&mut session, &statement).await? {
            letters.insert(letter);
        }
    }
    let mut changed = 0;
    for (column, is_mutable) in &table.columns {
        let statement = format!("update {name} set {column} = {column} where false");
        let allowed = is_allowed(&mut session, &statement).await?;
        changed += usize::from(allowed);
        if allowed && *is_mutable {
            letters.insert('m');
        }
    }
    if changed == table.columns.len() {
        letters.insert('u');
        letters.remove(&'m');
    } else if changed != table.columns.iter().filter(|(_, is_mutable)| *is_mutable).count() {
        // A column that is not declared.
        letters.insert('!');
    }
    Ok(letters)
}

/// Whether the database allows a statement, which is rolled back.
async fn is_allowed(session: &mut PgConnection, statement: &str) -> Result<bool> {
    /// `insufficient_privilege`
    const DENIED: &str = "42501";
    let mut attempt = session.begin().await?;
    let tried = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *attempt).await;
    attempt.rollback().await?;
    match tried {
        Ok(_) => Ok(true),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(DENIED) => Ok(false),
        Err(error) => bail!("{statement}: {error}"),
    }
}

/// A role reaches the database of its service. The owner makes tables and schemas there.
fn declare_database(is_own: bool, is_owner: bool) -> BTreeSet<char> {
    let letters = match (is_own, is_owner) {
        (false, _) => "",
        (true, false) => "c",
        (true, true) => "cts",
    };
    letters.chars().collect()
}

/// The owner may do everything. The serving role may do what the comment of a table declares.
fn declare_table(table: &DatabaseTable, is_owner: bool) -> BTreeSet<char> {
    let letters = match &*table.comment {
        _ if is_owner => "ridtaxu",
        _ if VERSION_TABLES.contains(&&*table.name) => "r",
        comment if comment.starts_with("append-only, deletable") => "rid",
        comment if comment.starts_with("append-only") => "ri",
        comment if comment.starts_with("deletable") => "ridu",
        comment if comment.starts_with("read-only") => "r",
        _ => "riu",
    };
    let mutable = table.columns.iter().any(|(_, is_mutable)| *is_mutable);
    letters.chars().chain((mutable && !is_owner).then_some('m')).collect()
}

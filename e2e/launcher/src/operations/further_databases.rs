//! Further databases in the cluster of a service, such as one that a connector writes.

use anyhow::{Result, ensure};
use sqlx::AssertSqlSafe;

use crate::components::postgres_roles::{connect_as_superuser, create_roles, lock_roles};
use crate::secrets::owner_role;
use crate::stack::Stack;
use crate::state::StackState;

/// A database that belongs to no service.
#[derive(Clone, Debug)]
pub struct FurtherDatabase {
    /// The database as the role that owns its tables: the role has the name of the database with `_migrator` behind it.
    pub owner_url: String,
    /// The same database as JDBC names it, without a role.
    pub jdbc_url: String,
    /// What stands for the password of its other role in the settings of a connector: a reference that the worker
    /// resolves. The role has the name of the database.
    pub password_reference: String,
}

impl Stack {
    /// A database of this name in the cluster of a service. It is created if it does not exist, with two roles: the one
    /// with its name may log in to it and to no other database, and has no rights yet.
    ///
    /// # Errors
    /// If the stack is not native or has no such service, or the cluster does not run.
    pub async fn further_database(&self, service: &str, name: &str) -> Result<FurtherDatabase> {
        ensure!(self.is_native(), "only a native stack has databases beside those of its services");
        let state = self.state()?;
        create_roles(&state, service, name).await?;
        separate(&state, service, name).await?;
        let address = state.address(&format!("{service}-db"))?;
        let mut jdbc_url = format!("jdbc:postgresql://{address}/{name}");
        if let Some(ca) = state.ca()? {
            jdbc_url += &format!("?sslmode=verify-full&sslrootcert={}", ca.display());
        }
        Ok(FurtherDatabase {
            owner_url: state.database_url(service, &owner_role(name), name)?,
            jdbc_url,
            password_reference: state.connect_password(service, name)?,
        })
    }
}

/// Every role may log in to a new database. From here on, the roles of the service stay out of this one, and its roles
/// out of that of the service.
async fn separate(state: &StackState, service: &str, name: &str) -> Result<()> {
    let mut db = connect_as_superuser(state, service).await?;
    let owner = owner_role(name);
    let statement = format!(
        r#"do $$ declare existing name; begin
               for existing in select rolname from pg_roles
                   where rolcanlogin and rolname not in ('{name}', '{owner}') loop
                   execute format('grant connect on database "{service}" to %I', existing);
               end loop;
           end $$;
           revoke connect on database "{service}", "{name}" from public;
           grant connect on database "{name}" to "{name}""#
    );
    lock_roles(&mut db).await?;
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut db).await?;
    Ok(())
}

//! `INSERT INTO … SELECT` out of a source: its own SQL, by the connector's `system.query`, into a table of
//! the lake.
//!
//! `system.query` is one split, and so one statement over one connection. No value is converted here but
//! JSON to what it stands for: a type that does not fit is Trino's error.

use polder_core::{
    Carried, Error, ErrorCode, Field, Import, LakeType, REFUSED, Result, RunProgress,
};

use super::client::{Page, Stats};
use super::statement::{quoted, text};

/// The statement that fills a table of `lake`.
///
/// # Errors
/// `internal` for a type that does not travel as JSON.
pub(super) fn insert(lake: &str, namespace: &str, import: &Import<'_>) -> Result<String> {
    let table = [lake, namespace, import.table].map(quoted).join(".");
    let names: Vec<String> =
        import.columns.iter().map(|column| quoted(&column.field.name)).collect();
    let values = import.columns.iter().enumerate().map(|(index, column)| value(index + 1, column));
    let values = values.collect::<Result<Vec<_>>>()?;
    Ok(format!(
        "INSERT INTO {table} ({}) SELECT {} FROM TABLE({}.system.query(query => {}))",
        names.join(", "),
        values.join(", "),
        quoted(import.source),
        text(import.statement),
    ))
}

fn value(number: usize, column: &Carried) -> Result<String> {
    let name = quoted(&format!("c{number}"));
    if !column.json {
        return Ok(name);
    }
    Ok(format!("CAST(json_parse({name}) AS {})", of_json(&column.field.data_type)?))
}

/// The type that JSON is cast to.
fn of_json(data_type: &LakeType) -> Result<String> {
    Ok(match data_type {
        LakeType::Boolean => "boolean".to_owned(),
        LakeType::Int => "integer".to_owned(),
        LakeType::Long => "bigint".to_owned(),
        LakeType::String => "varchar".to_owned(),
        LakeType::List(element) => format!("array({})", of_json(&element.data_type)?),
        LakeType::Struct(members) => {
            let member = |member: &Field| -> Result<String> {
                Ok(format!("{} {}", quoted(&member.name), of_json(&member.data_type)?))
            };
            let members = members.iter().map(member).collect::<Result<Vec<_>>>()?;
            format!("row({})", members.join(", "))
        }
        other => {
            let message = format!("{other} does not travel as JSON");
            return Err(Error::new(ErrorCode::Internal, message));
        }
    })
}

/// The rows that Trino says it has written.
pub(super) fn rows(page: &Page) -> Option<u64> {
    page.rows().first()?.first()?.as_u64()
}

/// Says how far Trino is.
pub(super) fn tell(progress: &RunProgress, stats: Stats) {
    progress.wait_for(if stats.queued {
        "Trino: the statement is queued there".to_owned()
    } else {
        format!("Trino, which has read {} rows", stats.processed_rows)
    });
}

/// What the statement's own refusal means, by the number of its column.
pub(super) fn refused(number: usize, import: &Import<'_>) -> Error {
    if let Some(column) = number.checked_sub(1).and_then(|index| import.columns.get(index)) {
        let message = format!(
            "column {:?} has a value that the lake's {} does not have",
            column.field.name, column.field.data_type
        );
        let hint =
            "declare the column as string in `types`, or read the table with engine: embedded";
        return Error::new(ErrorCode::SourceUnrepresentable, message)
            .detail(format!("source {}, read by Trino", import.source))
            .hint(hint);
    }
    let message = "Trino's catalog of the source is not the database that Polder reads";
    Error::new(ErrorCode::SourceFailed, message).detail(format!("catalog {}", import.source)).hint(
        "it has to be the same server and database, as a role that sees the same rows, with the same \
         search_path, Trino's server in time zone UTC, and floats sent whole (extra_float_digits)",
    )
}

/// The number in a refusal that a message of the source quotes.
pub(super) fn refusal(message: &str) -> Option<usize> {
    let (_, after) = message.split_once(REFUSED)?;
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    after[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use polder_core::{OrgId, Principal};

    use super::*;

    fn carried(name: &str, data_type: LakeType, json: bool) -> Carried {
        Carried { field: Field::new(name, data_type), json }
    }

    #[test]
    fn names_and_the_sources_sql_stay_what_they_are() {
        let org: OrgId = "401".parse().expect("org");
        let org = Principal::Operator.authorize(&org).expect("authorised");
        let columns = [
            carried("id", LakeType::Long, false),
            carried("a\"b", LakeType::list_of(LakeType::String), true),
            carried("for", LakeType::interval(), true),
        ];
        let import = Import {
            org: &org,
            source: "revdb",
            statement: "SELECT 'it''s' AS \"c1\"",
            columns: &columns,
            table: "polder_intake_t",
            file_mb: 128,
        };
        let sql = insert("lake", "org_401", &import).expect("statement");
        let expected = [
            r#"INSERT INTO "lake"."org_401"."polder_intake_t" ("id", "a""b", "for") SELECT "c1","#,
            r#" CAST(json_parse("c2") AS array(varchar)), CAST(json_parse("c3") AS row("#,
            r#""months" integer, "days" integer, "microseconds" bigint))"#,
            r#" FROM TABLE("revdb".system.query(query => 'SELECT ''it''''s'' AS "c1"'))"#,
        ];
        assert_eq!(sql, expected.concat());
        assert!(refused(2, &import).message().contains(r#""a\"b""#));
        for number in [0, 9] {
            assert_eq!(refused(number, &import).code(), ErrorCode::SourceFailed);
        }
    }

    #[test]
    fn what_json_would_change_does_not_travel_by_it() {
        for data_type in [LakeType::Double, LakeType::Date, LakeType::Uuid] {
            assert!(value(1, &carried("x", LakeType::list_of(data_type), true)).is_err());
        }
    }

    #[test]
    fn refusals_are_found_in_the_sources_words() {
        let said = "ERROR: invalid input syntax for type date: \"polder-refused-12\"";
        assert_eq!(refusal(said), Some(12));
        assert_eq!(refusal("invalid input syntax for type date: \"x\""), None);
    }
}

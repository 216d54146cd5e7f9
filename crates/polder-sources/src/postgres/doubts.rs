//! Why a read may be less than exact, as far as the catalog and the role's rights tell.
//!
//! The argument of `horizon` is about values that the server sets while a transaction is open. The
//! catalog shows that it does: a column's default, a sequence, a trigger. It shows no more than that:
//! an application that writes such a column by itself is not seen. What cannot be shown is doubted.

use std::collections::HashMap;

use polder_core::{Doubt, ReadRequest, Result};

use super::catalog::{self, Kind, Relation, Tree};
use super::connect::{Server, Session};
use super::cursor::{Comparison, Cursor};
use super::names::TableName;
use super::plan;

const DOING: &str = "looking for what sets the cursor";

/// Bits of `pg_trigger.tgtype`.
const ON_INSERT: i16 = 4;
const ON_UPDATE: i16 = 16;

/// What reads like this one may be in doubt about, whatever is open at the moment.
pub(super) async fn doubts(server: &Server, request: &ReadRequest) -> Result<Vec<Doubt>> {
    let name = TableName::parse(&request.from, &request.org)?;
    let session = server.session(name.database.as_deref(), request).await?;
    let found = look(&session, &name, request).await;
    session.close().await;
    found
}

async fn look(session: &Session, name: &TableName, request: &ReadRequest) -> Result<Vec<Doubt>> {
    let relation = catalog::find(session, name).await?;
    let cursor = match &request.cursor {
        Some(range) => Some(Cursor::of(&relation, &range.column)?),
        None => None,
    };
    let tree = catalog::tree(session, relation.oid).await?;
    if let Some(cursor) = &cursor {
        cursor.check_tree(&tree)?;
    }
    let unique = plan::key_is_unique(session, request, &relation, &tree).await?;
    let key = !request.key.is_empty();
    let cursor = cursor.as_ref();
    let mut doubts = of_catalog(session, &relation, &tree, cursor, key && !unique).await?;
    if cursor.is_some_and(Cursor::follows_clock) {
        doubts.extend(of_rights(session).await?);
    }
    Ok(doubts)
}

/// What the catalog leaves in doubt. `ambiguous`: a key is named, and nothing vouches for it.
pub(super) async fn of_catalog(
    session: &Session,
    relation: &Relation,
    tree: &Tree,
    cursor: Option<&Cursor>,
    ambiguous: bool,
) -> Result<Vec<Doubt>> {
    let mut doubts = Vec::new();
    if is_foreign(session, relation, tree).await? {
        doubts.push(Doubt::ForeignTable);
    }
    let Some(cursor) = cursor else { return Ok(doubts) };
    let plain = [
        (ambiguous, Doubt::KeyNotUnique),
        (cursor.is_coarse(), Doubt::CoarseCursor),
        (relation.row_security, Doubt::RowSecurity),
    ];
    doubts.extend(plain.into_iter().filter_map(|(holds, doubt)| holds.then_some(doubt)));
    if cursor.is_by_transaction() {
        // Whoever writes, and whatever: the server numbers it.
        doubts.push(Doubt::RewrittenRows);
    } else if relation.kind == Kind::View {
        doubts.extend([Doubt::View, Doubt::ChangesUnstamped]);
    } else if tree.written_elsewhere {
        // The mark of a number does not move there: see `horizon`.
        doubts.extend(cursor.follows_clock().then_some(Doubt::WrittenElsewhere));
        doubts.push(Doubt::ChangesUnstamped);
    } else {
        doubts.extend(of_stamps(session, relation, tree, cursor).await?);
    }
    Ok(doubts)
}

/// Whether rows come from foreign tables, through views too.
async fn is_foreign(session: &Session, relation: &Relation, tree: &Tree) -> Result<bool> {
    if relation.kind != Kind::View {
        return Ok(tree.foreign > 0);
    }
    let sql = "
        WITH RECURSIVE below AS (
            SELECT $1::oid AS oid
            UNION
            SELECT part.oid FROM below CROSS JOIN LATERAL (
                SELECT i.inhrelid AS oid FROM pg_catalog.pg_inherits i
                WHERE i.inhparent = below.oid
                UNION ALL
                SELECT d.refobjid FROM pg_catalog.pg_class v
                JOIN pg_catalog.pg_rewrite r ON r.ev_class = v.oid
                JOIN pg_catalog.pg_depend d ON d.objid = r.oid
                WHERE v.oid = below.oid AND v.relkind = 'v'
                  AND d.classid = 'pg_catalog.pg_rewrite'::regclass
                  AND d.refclassid = 'pg_catalog.pg_class'::regclass) part)
        SELECT 1 FROM below JOIN pg_catalog.pg_class c ON c.oid = below.oid
        WHERE c.relkind = 'f' LIMIT 1";
    Ok(!session.query(sql, &[&relation.oid], DOING).await?.is_empty())
}

/// Whether the role sees when others' transactions began, and the server who writes.
async fn of_rights(session: &Session) -> Result<Option<Doubt>> {
    let sql = "
        SELECT pg_catalog.pg_is_in_recovery(),
               pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')
               AND pg_catalog.current_setting('track_activities') = 'on'";
    let row = session.row(sql, DOING).await?;
    Ok(match (row.get::<_, bool>(0), row.get::<_, bool>(1)) {
        (true, _) => Some(Doubt::Standby),
        (false, false) => Some(Doubt::HiddenTransactions),
        (false, true) => None,
    })
}

/// What the server does not set by itself.
async fn of_stamps(
    session: &Session,
    relation: &Relation,
    tree: &Tree,
    cursor: &Cursor,
) -> Result<Vec<Doubt>> {
    // Rows come to partitions through their parent, whose defaults and triggers hold; heirs have
    // their own.
    let tables = match relation.kind {
        Kind::Partitioned => vec![relation.oid],
        _ => tree.oids.clone(),
    };
    if cursor.follows_clock() {
        return clock(session, &tables, cursor).await;
    }
    let mut doubts = vec![Doubt::ChangesUnstamped];
    if cursor.comparison == Comparison::Int {
        doubts.extend(sequence(session, &tables, cursor).await?);
    } else {
        doubts.push(Doubt::UnorderedCursor);
    }
    Ok(doubts)
}

/// What the server's clock sets in a table.
#[derive(Clone, Copy, Default)]
struct Stamped {
    in_new_rows: bool,
    in_changed_rows: bool,
}

async fn clock(session: &Session, tables: &[u32], cursor: &Cursor) -> Result<Vec<Doubt>> {
    // Triggers that fire before each row, for whatever column changes: bits 1 and 2.
    let sql = "
        SELECT a.attrelid, pg_catalog.pg_get_expr(d.adbin, d.adrelid), t.tgtype, p.prosrc,
               pg_catalog.encode(t.tgargs, 'escape')
        FROM pg_catalog.pg_attribute a
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        LEFT JOIN pg_catalog.pg_trigger t
               ON t.tgrelid = a.attrelid AND (t.tgtype & 3) = 3 AND t.tgenabled IN ('O', 'A')
              AND t.tgattr::text = ''
              AND (t.tgqual IS NULL OR pg_catalog.pg_get_triggerdef(t.oid)
                       LIKE '%WHEN ((old.* IS DISTINCT FROM new.*))%')
        LEFT JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
        WHERE a.attrelid = ANY ($1) AND a.attname::text = $2::text AND NOT a.attisdropped";
    let rows = session.query(sql, &[&tables, &cursor.name()], DOING).await?;
    let mut stamped: HashMap<u32, Stamped> = HashMap::new();
    for row in &rows {
        let found = stamped.entry(row.get(0)).or_default();
        let default: Option<&str> = row.get(1);
        found.in_new_rows |= default.is_some_and(|default| is_now(default, cursor.comparison));
        let (kind, body): (Option<i16>, Option<&str>) = (row.get(2), row.get(3));
        let (Some(kind), Some(body)) = (kind, body) else { continue };
        let arguments: Option<&str> = row.get(4);
        if sets_now(body, arguments.unwrap_or_default(), cursor.name(), cursor.comparison) {
            found.in_new_rows |= kind & ON_INSERT != 0;
            found.in_changed_rows |= kind & ON_UPDATE != 0;
        }
    }
    let all = |of: fn(&Stamped) -> bool| stamped.len() == tables.len() && stamped.values().all(of);
    let doubts = [
        (all(|stamped| stamped.in_new_rows), Doubt::ApplicationClock),
        (all(|stamped| stamped.in_changed_rows), Doubt::ChangesUnstamped),
    ];
    Ok(doubts.into_iter().filter_map(|(holds, doubt)| (!holds).then_some(doubt)).collect())
}

/// Numbers that sequences hand out: as identities, and as defaults.
async fn sequence(session: &Session, tables: &[u32], cursor: &Cursor) -> Result<Option<Doubt>> {
    let sql = "
        SELECT s.cached, s.ordered
               AND (a.attidentity <> ''
                    OR pg_catalog.pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%')
        FROM pg_catalog.pg_attribute a
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        CROSS JOIN LATERAL (
            SELECT pg_catalog.bool_or(s.seqcache > 1) AS cached,
                   pg_catalog.bool_and(s.seqincrement > 0 AND NOT s.seqcycle) AS ordered
            FROM pg_catalog.pg_sequence s
            WHERE s.seqrelid IN (
                SELECT o.objid FROM pg_catalog.pg_depend o
                WHERE o.classid = 'pg_catalog.pg_class'::regclass
                  AND o.refclassid = 'pg_catalog.pg_class'::regclass
                  AND o.refobjid = a.attrelid AND o.refobjsubid = a.attnum AND o.deptype = 'i'
                UNION ALL
                SELECT o.refobjid FROM pg_catalog.pg_depend o
                WHERE o.classid = 'pg_catalog.pg_attrdef'::regclass AND o.objid = d.oid
                  AND o.refclassid = 'pg_catalog.pg_class'::regclass)) s
        WHERE a.attrelid = ANY ($1) AND a.attname::text = $2::text AND NOT a.attisdropped";
    let rows = session.query(sql, &[&tables, &cursor.name()], DOING).await?;
    let holds = |row: &tokio_postgres::Row, place: usize| {
        row.get::<_, Option<bool>>(place).unwrap_or(false)
    };
    // Several sequences have no order among each other.
    Ok(match &rows[..] {
        [row] if holds(row, 1) => holds(row, 0).then_some(Doubt::CachedSequence),
        _ => Some(Doubt::UnorderedCursor),
    })
}

/// The beginning of the transaction or later, as a moment.
const NOW: [&str; 5] = [
    "now()",
    "current_timestamp",
    "transaction_timestamp()",
    "statement_timestamp()",
    "clock_timestamp()",
];

/// Whether an expression is the present time, in a form that a column compared like this holds without
/// falling behind what `horizon` allows for.
fn is_now(expression: &str, of: Comparison) -> bool {
    let text = bare(expression).to_lowercase();
    // A moment that is taken apart from its zone would be read as one of the session's zone.
    let local = of != Comparison::Timestamptz;
    let day = of == Comparison::Date;
    if NOW.contains(&&*text)
        || (local && text == "localtimestamp")
        || (day && text == "current_date")
    {
        return true;
    }
    let casts = [
        ("::timestamp with time zone", true),
        ("::timestamptz", true),
        ("::timestamp without time zone", local),
        ("::timestamp", local),
        ("::date", day),
    ];
    for (cast, fits) in casts {
        if let Some(inner) = text.strip_suffix(cast) {
            return fits && is_now(inner, of);
        }
    }
    let function = || {
        let arguments = text.strip_prefix("timezone(")?.strip_suffix(')')?;
        arguments.split_once(',').map(|(zone, inner)| (inner, zone))
    };
    let moved = text.rsplit_once(" at time zone ").or_else(function);
    moved.is_some_and(|(inner, zone)| local && is_zone(zone) && is_now(inner, of))
}

/// Without blanks and parentheses around it.
fn bare(text: &str) -> &str {
    let mut text = text.trim();
    while let Some(inner) = text.strip_prefix('(').and_then(|text| text.strip_suffix(')')) {
        let mut depth = 0_i32;
        let is_one = inner.chars().all(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth >= 0
        });
        if !is_one {
            break;
        }
        text = inner.trim();
    }
    text
}

/// The name of a time zone, none of which is more than 12 hours behind UTC.
fn is_zone(text: &str) -> bool {
    let text = text.trim();
    let quoted = text.strip_suffix("::text").unwrap_or(text);
    let name = quoted.strip_prefix('\'').and_then(|name| name.strip_suffix('\''));
    let is_plain = |c: char| c.is_ascii_alphabetic() || c == '/' || c == '_';
    name.is_some_and(|name| !name.is_empty() && name.chars().all(is_plain))
}

/// Whether a trigger's function assigns the present time to the column. That it does so each time is
/// not looked at.
fn sets_now(body: &str, arguments: &str, column: &str, of: Comparison) -> bool {
    // An extension's function, which takes the column's name.
    if body == "moddatetime" {
        return of != Comparison::Date && arguments.trim_end_matches("\\000") == column;
    }
    let (body, column) = (body.to_lowercase(), column.to_lowercase());
    let names = [format!("new.{column}"), format!("new.\"{column}\"")];
    let assigns = |(at, name): (usize, &str)| {
        let rest = body[at + name.len()..].trim_start();
        let value = rest.strip_prefix(":=").or_else(|| rest.strip_prefix('='));
        value.and_then(|value| value.split(';').next()).is_some_and(|value| is_now(value, of))
    };
    names.iter().any(|name| body.match_indices(name.as_str()).any(assigns))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONED: Comparison = Comparison::Timestamptz;
    const LOCAL: Comparison = Comparison::Timestamp;
    const DAY: Comparison = Comparison::Date;

    #[test]
    fn the_present_time_is_known_in_its_forms() {
        for (text, zoned, local, day) in [
            ("now()", true, true, true),
            ("CURRENT_TIMESTAMP", true, true, true),
            ("(clock_timestamp())::timestamp with time zone", true, true, true),
            ("LOCALTIMESTAMP", false, true, true),
            ("(now() AT TIME ZONE 'utc'::text)", false, true, true),
            ("timezone('Europe/Berlin'::text, now())", false, true, true),
            ("(now())::timestamp without time zone", false, true, true),
            // A day's beginning is too early for a time.
            ("CURRENT_DATE", false, false, true),
            ("(now())::date", false, false, true),
            ("(now() - '1 day'::interval)", false, false, false),
            ("(now() AT TIME ZONE '-20:00'::interval)", false, false, false),
            ("date_trunc('month'::text, now())", false, false, false),
            ("'2026-01-01 00:00:00+00'::timestamp with time zone", false, false, false),
            ("(now()) + (now())", false, false, false),
            ("", false, false, false),
        ] {
            let found = [ZONED, LOCAL, DAY].map(|of| is_now(text, of));
            assert_eq!(found, [zoned, local, day], "{text}");
        }
    }

    #[test]
    fn a_trigger_sets_the_column_if_its_function_says_so() {
        let plain = "BEGIN NEW.updated_at := now(); RETURN NEW; END";
        let guarded = "BEGIN IF NEW.updated_at = OLD.updated_at THEN
            NEW.updated_at = CURRENT_TIMESTAMP; END IF; RETURN NEW; END";
        for (body, arguments, column, expected) in [
            (plain, "", "updated_at", true),
            (guarded, "", "updated_at", true),
            (plain, "", "created_at", false),
            ("BEGIN NEW.updated_at_utc := now(); END", "", "updated_at", false),
            ("BEGIN NEW.\"updatedAt\" := now(); END", "", "updatedAt", true),
            ("BEGIN NEW.updated_at := OLD.updated_at; END", "", "updated_at", false),
            ("BEGIN RETURN NEW; END", "", "updated_at", false),
            ("moddatetime", "updated_at\\000", "updated_at", true),
            ("moddatetime", "changed\\000", "updated_at", false),
        ] {
            assert_eq!(sets_now(body, arguments, column, ZONED), expected, "{body} {column}");
        }
    }
}

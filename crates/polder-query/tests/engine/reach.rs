//! Filters that joins fill in while a query runs, where columns of several tables have one name.

use arrow::array::Int64Array;
use polder_core::{Field, LakeType, TableSchema};

use super::lake::{Rows, TestLake, array};

const MANY: i64 = 50_000;

/// `l` and `r` have many rows, `s` has two, `n` one and a null. Ids of `l` are those of `r` and 1,000,000.
async fn tables() -> TestLake {
    let test = TestLake::new().await;
    let names = ["id", "k", "y"].map(|name| Field::new(name, LakeType::Long));
    let schema = TableSchema::new(names.to_vec());
    let table = async |table: &str, rows: Vec<[Option<i64>; 3]>| {
        let column = |at: usize| array(rows.iter().map(|row| row[at]).collect::<Int64Array>());
        let parts = vec![vec![column(0), column(1), column(2)]];
        test.replace(Rows { org: "1", table, schema: &schema, partition: &[], parts }).await;
    };
    let row = |id, k, y| [Some(id), Some(k), Some(y)];
    table("l", (0..MANY).map(|n| row(n + 1_000_000, n, 0)).collect()).await;
    table("r", (0..MANY).map(|n| row(n, n, 1)).collect()).await;
    table("s", vec![row(7, 7, 0), row(8, 8, 0)]).await;
    table("n", vec![row(0, -1, 0), [Some(1), None, Some(0)]]).await;
    test
}

#[tokio::test]
async fn filters_reach_the_column_they_mean() {
    let test = tables().await;
    for (sql, expected) in [
        // Two columns `id` below the join with `s`: what it wants is `r`'s.
        (
            "SELECT l.id, r.id, s.y FROM l JOIN r ON l.k = r.k JOIN s ON s.id = r.id ORDER BY 1",
            "1000007|7|0\n1000008|8|0",
        ),
        (
            "SELECT l.id, r.id FROM l JOIN r ON l.k = r.k ORDER BY r.id DESC LIMIT 2",
            "1049999|49999\n1049998|49998",
        ),
        // Columns of a union have the names of its first part.
        (
            "SELECT sum(x.k) FROM (SELECT id, k FROM l UNION ALL SELECT k, id FROM r) x JOIN s ON x.k = s.k",
            "30",
        ),
        (
            "SELECT count(*), sum(x.k), max(x.id) FROM (SELECT id, k FROM l UNION ALL SELECT k, id FROM r) x",
            "100000|2499950000|1049999",
        ),
        // `NOT IN` has to see the null, which no key of `s` is.
        (
            "SELECT count(*) FROM s JOIN (SELECT k FROM l WHERE k NOT IN (SELECT k FROM n)) x ON x.k = s.k",
            "0",
        ),
        // The other side has a column of the key's name.
        (
            "SELECT count(*) FROM s JOIN (SELECT * FROM l WHERE EXISTS \
          (SELECT 1 FROM r WHERE r.id = l.k + 1 AND r.k > l.y)) x ON x.k = s.k",
            "2",
        ),
        (
            "SELECT count(*) FROM s JOIN (SELECT * FROM l WHERE NOT EXISTS \
          (SELECT 1 FROM r WHERE r.y = l.k AND r.k > l.y)) x ON x.k = s.k",
            "2",
        ),
        (
            "SELECT count(*) FROM s JOIN (SELECT * FROM l WHERE EXISTS \
          (SELECT 1 FROM r WHERE r.id = l.k AND r.k >= l.k)) x ON x.k = s.k",
            "2",
        ),
        // Only the rows of two keys are aggregated.
        (
            "SELECT s.id, x.n FROM s JOIN (SELECT k, count(*) AS n FROM l GROUP BY k) x ON x.k = s.k ORDER BY 1",
            "7|1\n8|1",
        ),
        (
            "SELECT count(*) FROM s JOIN (SELECT y AS k, count(*) AS n FROM l GROUP BY y) x ON x.k + 7 = s.k",
            "1",
        ),
    ] {
        let sql = ["l", "r", "s", "n"].iter().fold(format!("{sql} "), |sql, name| {
            ["FROM", "JOIN"].iter().fold(sql, |sql, word| {
                [" ", ")"].iter().fold(sql, |sql, end| {
                    let place = format!("{word} lake.org_1.{name}{end}");
                    sql.replace(&format!("{word} {name}{end}"), &place)
                })
            })
        });
        assert_eq!(test.text(&sql).await.expect("rows"), expected, "{sql}");
    }
}

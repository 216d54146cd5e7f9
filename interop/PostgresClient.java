import java.math.BigDecimal;
import java.sql.Array;
import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Properties;

/** PostgreSQL's own JDBC driver as a client of `polder serve`: prints one line a finding. */
public class PostgresClient {
    private static void say(String name, Object value) {
        System.out.println(name + "=" + value);
    }

    private static List<String> column(ResultSet rows, String... names) throws SQLException {
        List<String> found = new ArrayList<>();
        while (rows.next()) {
            List<String> row = new ArrayList<>();
            for (String name : names) {
                row.add(rows.getString(name));
            }
            found.add(String.join("|", row));
        }
        return found;
    }

    private static void rows(Connection connection) throws SQLException {
        String sql = "SELECT id, note, amount, at, day, share, tags, big FROM deal WHERE id = ? AND note <> ?";
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            // From the fifth time on it is prepared on the server, and answers in binary.
            for (int time = 0; time < 8; time++) {
                statement.setLong(1, 7);
                statement.setString(2, "it's; -- no");
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    say("row", rows.getLong("id") + "|" + rows.getString("note") + "|"
                        + rows.getBigDecimal("amount").toPlainString() + "|"
                        + rows.getObject("at", java.time.OffsetDateTime.class).toInstant() + "|"
                        + rows.getDate("day").toLocalDate() + "|" + rows.getDouble("share") + "|"
                        + Arrays.toString((Object[]) rows.getArray("tags").getArray()) + "|"
                        + rows.getBigDecimal("big").toPlainString());
                }
            }
        }
        String types = "SELECT ?::bigint + 1, ?::text, cast(? AS decimal(12, 3)), ? = true, ?::date";
        try (PreparedStatement statement = connection.prepareStatement(types)) {
            statement.setInt(1, 41);
            statement.setString(2, "é\\'");
            statement.setBigDecimal(3, new BigDecimal("-12.340"));
            statement.setBoolean(4, true);
            statement.setObject(5, java.time.LocalDate.of(2026, 1, 2));
            try (ResultSet rows = statement.executeQuery()) {
                rows.next();
                say("parameters", rows.getLong(1) + "|" + rows.getString(2) + "|" + rows.getBigDecimal(3)
                    + "|" + rows.getBoolean(4) + "|" + rows.getString(5));
            }
        }
    }

    private static void parts(Connection connection) throws SQLException {
        connection.setAutoCommit(false);
        long count = 0;
        long sum = 0;
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(1000);
            try (ResultSet rows = statement.executeQuery("SELECT id FROM many")) {
                while (rows.next()) {
                    count++;
                    sum += rows.getLong(1);
                }
            }
        }
        connection.commit();
        connection.setAutoCommit(true);
        say("parts", count + "|" + sum);
    }

    private static void metadata(Connection connection) throws SQLException {
        DatabaseMetaData metadata = connection.getMetaData();
        say("tables", column(metadata.getTables(null, "org_401", "%", new String[] {"TABLE"}),
            "TABLE_SCHEM", "TABLE_NAME"));
        say("columns", column(metadata.getColumns(null, "org_401", "deal", "%"), "COLUMN_NAME", "TYPE_NAME"));
        say("schemas", column(metadata.getSchemas(), "TABLE_SCHEM"));
    }

    /** How a statement ended whose time is a second, and whether that was within three. */
    private static String timed(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            long begun = System.nanoTime();
            try {
                statement.executeQuery("SELECT count(*) FROM generate_series(1, 1000000000000)");
                return "never";
            } catch (SQLException error) {
                return error.getSQLState() + "|" + ((System.nanoTime() - begun) / 1_000_000 < 3_000);
            }
        }
    }

    private static void ended(Connection connection) throws SQLException {
        String ended = timed(connection);
        // Another process may have had the processor.
        for (int more = 2; more > 0 && ended.endsWith("|false"); more--) {
            ended = timed(connection);
        }
        say("ended", ended);
        for (String sql : List.of("DELETE FROM deal", "SELECT * FROM org_402.deal")) {
            try (Statement statement = connection.createStatement()) {
                statement.execute(sql);
                say("refused", "not");
            } catch (SQLException error) {
                say("refused", error.getSQLState());
            }
        }
    }

    public static void main(String[] arguments) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", "ann");
        properties.setProperty("password", arguments[1]);
        try (Connection connection = DriverManager.getConnection(arguments[0], properties)) {
            rows(connection);
            parts(connection);
            metadata(connection);
            ended(connection);
        }
    }
}

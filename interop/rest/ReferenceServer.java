import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.catalog.Catalog;
import org.apache.iceberg.jdbc.JdbcCatalog;
import org.apache.iceberg.rest.RESTCatalogAdapter;
import org.apache.iceberg.rest.RESTCatalogServlet;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.http.UriCompliance;
import org.eclipse.jetty.server.HttpConfiguration;
import org.eclipse.jetty.server.HttpConnectionFactory;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;

/**
 * Apache Iceberg's reference REST catalog: the adapter and servlet that its own compatibility kit runs
 * against, over a JDBC catalog in SQLite. Its own main class listens on every interface; this one on
 * 127.0.0.1 alone.
 *
 * <p>{@code java -cp "JARS/*" ReferenceServer.java PORT DATABASE WAREHOUSE NAME CLIENTS}, with the jars
 * of {@code interop/rck/pom.xml}, the database's JDBC address, the catalog's name inside the database
 * and the number of connections to it.
 */
public class ReferenceServer {
  public static void main(String[] args) throws Exception {
    int port = Integer.parseInt(args[0]);
    Map<String, String> properties =
        Map.of(
            "catalog-impl", JdbcCatalog.class.getName(),
            "uri", args[1],
            "jdbc.schema-version", "V1",
            "clients", args[4],
            "warehouse", args[2]);
    Catalog catalog = CatalogUtil.buildIcebergCatalog(args[3], properties, new Configuration());
    ServletContextHandler context = new ServletContextHandler(ServletContextHandler.NO_SESSIONS);
    context.addServlet(
        new ServletHolder(new RESTCatalogServlet(new RESTCatalogAdapter(catalog))), "/*");
    // The specification lets any name be a segment of a path; Jetty would refuse encoded slashes.
    context.getServletHandler().setDecodeAmbiguousURIs(true);
    HttpConfiguration http = new HttpConfiguration();
    http.setUriCompliance(UriCompliance.UNSAFE);
    Server server = new Server();
    ServerConnector connector = new ServerConnector(server, new HttpConnectionFactory(http));
    connector.setHost("127.0.0.1");
    connector.setPort(port);
    server.addConnector(connector);
    server.setHandler(context);
    server.start();
    System.out.println("listening on 127.0.0.1:" + connector.getLocalPort());
    server.join();
  }
}

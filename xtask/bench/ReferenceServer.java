import java.net.InetSocketAddress;
import java.util.Map;
import org.apache.hadoop.conf.Configuration;
import org.apache.iceberg.CatalogUtil;
import org.apache.iceberg.rest.RESTCatalogAdapter;
import org.apache.iceberg.rest.RESTCatalogServlet;
import org.eclipse.jetty.ee10.servlet.ServletContextHandler;
import org.eclipse.jetty.ee10.servlet.ServletHolder;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;

/**
 * Iceberg's own REST catalog server over its JDBC catalog, as {@code RESTCatalogServer} puts it
 * together, but on 127.0.0.1 alone. Arguments: the database's JDBC address, the warehouse.
 */
class ReferenceServer {
  public static void main(String[] args) throws Exception {
    var properties =
        Map.of(
            "catalog-impl", "org.apache.iceberg.jdbc.JdbcCatalog",
            "uri", args[0],
            "warehouse", args[1],
            "jdbc.schema-version", "V1",
            "clients", "8");
    var catalog = CatalogUtil.buildIcebergCatalog("polder", properties, new Configuration());
    var servlet = new RESTCatalogServlet(new RESTCatalogAdapter(catalog));
    var context = new ServletContextHandler(ServletContextHandler.NO_SESSIONS);
    context.addServlet(new ServletHolder(servlet), "/*");
    var server = new Server(new InetSocketAddress("127.0.0.1", 0));
    server.setHandler(context);
    server.start();
    var port = ((ServerConnector) server.getConnectors()[0]).getLocalPort();
    System.out.println("listening on 127.0.0.1:" + port);
    server.join();
  }
}

import java.util.List;
import java.util.Map;
import org.apache.iceberg.DeleteFile;
import org.apache.iceberg.FileFormat;
import org.apache.iceberg.PartitionKey;
import org.apache.iceberg.RowDelta;
import org.apache.iceberg.Schema;
import org.apache.iceberg.Table;
import org.apache.iceberg.catalog.TableIdentifier;
import org.apache.iceberg.data.GenericAppenderFactory;
import org.apache.iceberg.data.GenericRecord;
import org.apache.iceberg.data.InternalRecordWrapper;
import org.apache.iceberg.data.Record;
import org.apache.iceberg.deletes.EqualityDeleteWriter;
import org.apache.iceberg.encryption.EncryptedOutputFile;
import org.apache.iceberg.io.OutputFileFactory;
import org.apache.iceberg.rest.RESTCatalog;
import org.apache.iceberg.types.Conversions;
import org.apache.iceberg.types.Types;

/**
 * Iceberg's own library as another engine: deletes rows of a served table by equality, in one commit of one
 * delete file for each {@code column=value,…} that is named. {@code null} is the null.
 */
public class EqualityDeletes {
    private static Record record(Schema columns, String row) {
        Record record = GenericRecord.create(columns);
        for (String pair : row.split(",")) {
            String[] parts = pair.split("=", 2);
            Types.NestedField field = columns.findField(parts[0]);
            Object value = "null".equals(parts[1]) ? null : Conversions.fromPartitionString(field.type(), parts[1]);
            record.setField(parts[0], value instanceof CharSequence ? value.toString() : value);
        }
        return record;
    }

    private static DeleteFile deletes(Table table, OutputFileFactory files, String row) throws Exception {
        List<String> names = List.of(row.split(",")).stream().map(pair -> pair.split("=", 2)[0]).toList();
        Schema columns = table.schema().select(names);
        Record record = record(columns, row);
        int[] ids = names.stream().mapToInt(name -> columns.findField(name).fieldId()).toArray();
        GenericAppenderFactory factory =
            new GenericAppenderFactory(table.schema(), table.spec(), ids, columns, null);
        // What compresses comes with Spark, not with Iceberg.
        factory.set("write.parquet.compression-codec", "uncompressed");
        PartitionKey partition = null;
        EncryptedOutputFile file;
        if (table.spec().isPartitioned()) {
            // Of the key that the table is partitioned by.
            partition = new PartitionKey(table.spec(), columns);
            partition.partition(new InternalRecordWrapper(columns.asStruct()).wrap(record));
            file = files.newOutputFile(table.spec(), partition);
        } else {
            file = files.newOutputFile();
        }
        EqualityDeleteWriter<Record> writer = factory.newEqDeleteWriter(file, FileFormat.PARQUET, partition);
        try (writer) {
            writer.write(record);
        }
        return writer.toDeleteFile();
    }

    public static void main(String[] arguments) throws Exception {
        if (arguments.length < 4) {
            throw new IllegalArgumentException("URI NAMESPACE TABLE COLUMN=VALUE[,COLUMN=VALUE]…");
        }
        try (RESTCatalog catalog = new RESTCatalog()) {
            catalog.initialize("polder", Map.of("uri", arguments[0]));
            Table table = catalog.loadTable(TableIdentifier.of(arguments[1], arguments[2]));
            OutputFileFactory files =
                OutputFileFactory.builderFor(table, 1, 1).format(FileFormat.PARQUET).build();
            RowDelta delta = table.newRowDelta();
            for (String row : List.of(arguments).subList(3, arguments.length)) {
                delta.addDeletes(deletes(table, files, row));
            }
            delta.commit();
            System.out.println(table.currentSnapshot().snapshotId());
        }
    }
}

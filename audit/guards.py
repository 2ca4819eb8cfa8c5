"""SQL that makes the ledger's tables insert-only; the migration runs it.

ENABLE ALWAYS, because plain triggers sleep under `session_replication_role = replica`. A superuser can still
drop them: `audit.verify` is what finds that out."""

TABLES = ("audit_event", "audit_leaf", "audit_ledgercheckpoint")

INSTALL = """
CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only: % on % refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;
""" + "".join(
    f"""
CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table}
    FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only;
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_no_truncate;
"""
    for table in TABLES
)

REMOVE = "DROP FUNCTION audit_refuse() CASCADE;"

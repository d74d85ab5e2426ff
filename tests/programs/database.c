/* Runs the SQL of its standard input in a database file by SQLite, and prints the rows. Usage: database FILE */
#include <sqlite3.h>
#include <stdio.h>

static int row(void *unused, int columns, char **values, char **names) {
    (void)unused, (void)names;
    for (int i = 0; i < columns; i++) printf("%s%c", values[i] ? values[i] : "NULL", i + 1 < columns ? '|' : '\n');
    return 0;
}

int main(int argc, char **argv) {
    static char sql[1 << 16];
    sqlite3 *database;
    char *why = NULL;
    size_t length = fread(sql, 1, sizeof sql - 1, stdin);
    sql[length] = 0;
    if (argc != 2 || sqlite3_open(argv[1], &database) != SQLITE_OK) return 2;
    if (sqlite3_exec(database, sql, row, NULL, &why) != SQLITE_OK) {
        printf("error: %s\n", why ? why : "no text");
        return 1;
    }
    return sqlite3_close(database) != SQLITE_OK;
}

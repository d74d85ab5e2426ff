# What shell.toml runs.
for name in "$@"; do
    echo "$GREETING, $name"
done

--- A clean copy of this checkout, as a stranger would have it after a clone: what git knows and what is new, nothing that was built.
-- @module spec.checkout

local support = require "spec.support"

local COPY = [[
set -eu
mkdir -p "$2"
cd "$1"
git ls-files -z --cached --others --exclude-standard --deduplicate | while IFS= read -r -d '' file; do
  [ -e "$file" ] && printf '%s\0' "$file"
done | tar --create --null --files-from=- | tar --extract --directory="$2"
]]

--- Copies it.
-- @string name of the folder, in the temporary folder
-- @treturn string its path
return function(name)
  local path = support.path(name)
  local copied = support.run { "bash", "-c", COPY, "copy", support.root, path }
  if copied.code ~= 0 then error(copied:describe "failed", 2) end
  return path
end

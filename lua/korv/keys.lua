--- Who may log in: reads a file in the format of OpenSSH's authorized_keys (sshd(8)) and says which keys are let in, and why the
-- others are not. A line that cannot be honoured in full refuses its key. Knows no session and no cryptography: whether a key is
-- sound, and its fingerprint, it asks.
-- @module korv.keys

local keyoptions = require "korv.keyoptions"

local keys = {}

local ACCEPTED = {
  ["ssh-ed25519"] = true,
  ["ecdsa-sha2-nistp256"] = true,
  ["ecdsa-sha2-nistp384"] = true,
  ["ecdsa-sha2-nistp521"] = true,
  ["ssh-rsa"] = true,
  ["sk-ssh-ed25519@openssh.com"] = true,
  ["sk-ecdsa-sha2-nistp256@openssh.com"] = true,
}

-- Why a key of this type is refused; nil where it is not, or where this is no type of key.
local function refusal(type)
  if type == "ssh-dss" then return "ssh-dss keys are too weak; make a new one with `ssh-keygen -t ed25519`" end
  if type:find("%-cert%-v%d%d@openssh%.com$") then
    return ("%s is a certificate, and those are not supported; list the key itself, from its .pub file"):format(type)
  end
end

local function is_type(word) return ACCEPTED[word] or refusal(word) ~= nil end

-- A value in quotes, from its opening quote on: the value, and the position behind it. nil: it does not end.
local function quoted(line, from)
  local at = from
  repeat
    at = line:find('"', at + 1, true)
    if not at then return nil end
  until line:sub(at - 1, at - 1) ~= "\\"
  return line:sub(from + 1, at - 1):gsub('\\"', '"'), at + 1
end

-- One option, from a position on, and the position behind it. Or nil and what is wrong, which quotes nothing of the line: that
-- may be a private key.
local function read_option(line, from)
  local name, behind = line:match("^(%a[%w-]*)()", from)
  if not name then return nil, "has no name" end
  if line:sub(behind, behind) ~= "=" then return { name = name:lower() }, behind end
  if line:sub(behind + 1, behind + 1) ~= '"' then return nil, "has a value that is not in quotes" end
  local value, after = quoted(line, behind + 1)
  if not value then return nil, "has a value without a closing quote" end
  return { name = name:lower() .. "=", value = value }, after
end

-- The options before a key, as a list, and the rest of the line. Or nil and what is wrong.
local function read_options(line)
  local list, at = {}, 1
  repeat
    local option, behind = read_option(line, at)
    if not option then return nil, ("option %d %s"):format(#list + 1, behind) end
    list[#list + 1] = option
    at = behind + 1
  until line:sub(behind, behind) ~= ","
  local rest = line:match("^%f[ \t\0][ \t]*(.*)", at - 1) -- the frontier holds at the line's end, too
  if not rest then return nil, ("neither a comma nor a space follows option %d"):format(#list) end
  return list, rest
end

local DIGITS = { ["="] = 0 }
for i, digit in utf8.codes("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") do
  DIGITS[utf8.char(digit)] = i - 1
end

local function decode_base64(text)
  return (text:gsub("(.)(.)(.)(.)", function(a, b, c, d)
    return string.pack(">I3", DIGITS[a] << 18 | DIGITS[b] << 12 | DIGITS[c] << 6 | DIGITS[d])
  end))
end

-- What is wrong with a key's base64 text; nil where its shape is right and it begins with its type.
local function misshapen(type, blob)
  if #blob % 4 ~= 0 or not blob:find("^[A-Za-z0-9+/]+=?=?$") then
    return "the key is no base64 text, or a part of it is missing; copy the whole line from the .pub file again"
  end
  local expected = string.pack(">s4", type)
  local groups = (#expected + 2) // 3
  if decode_base64(blob:sub(1, 4 * groups)):sub(1, #expected) ~= expected then
    return ("the key is not of the type that is written, %s; copy the whole line from the .pub file again"):format(type)
  end
end

local FORMAT = "; a line is [options] type key [comment], as in a .pub file"

-- The options before a key, as a list, and the line from its type on. Or nil and what is wrong.
local function split_options(line)
  if line:find("\0", 1, true) then return nil, "there is a zero byte in the line; sshd takes the line to end there, so take it out" end
  if line:find("^%-%-%-%-") then return nil, "this is a key file of another kind, maybe a private key; list the line of the .pub file" end
  if is_type(line:match("^[^ \t]+")) then return {}, line end
  local list, rest = read_options(line)
  if not list then return nil, rest .. FORMAT end
  return list, rest
end

-- The entry that a line makes. Or nil and what is wrong.
local function read_line(line, given)
  local list, rest = split_options(line)
  if not list then return nil, rest end
  local type, blob, comment = rest:match("^([^ \t]+)[ \t]+([^ \t]+)[ \t]*(.-)[ \t]*$")
  if not type or not is_type(type) then return nil, "no key of a known type" .. FORMAT end
  local options, what = keyoptions.read(list, given)
  what = what or refusal(type) or misshapen(type, blob)
  if what then return nil, what end
  return { type = type, blob = blob, comment = comment, options = options }
end

-- Gives accept every entry of a text; it returns what is wrong with one. Returns the problems.
local function read_lines(text, name, given, accept)
  local problems, number = {}, 0
  for line in (text:gsub("^\u{FEFF}", "") .. "\n"):gmatch("([^\n]*)\n") do
    number = number + 1
    line = line:match("^[ \t]*(.-)\r?$")
    if line ~= "" and line:sub(1, 1) ~= "#" then
      local entry, what = read_line(line, given)
      if entry then
        entry.line = number
        what = accept(entry)
      end
      if what then problems[#problems + 1] = ("%s:%d: %s"):format(name, number, what) end
    end
  end
  return problems
end

--- Reads the text of an authorized_keys file. A bad line costs only its own key.
-- @tparam string text
-- @tparam string name the file's, for the problems
-- @tparam[opt] table given see `load`
-- @treturn table a list of entries `{ type, blob, comment, line, options }`: `blob` is the base64 text, `options` what the server
-- has to honour, see `korv.keyoptions`
-- @treturn table a list of problems, each as `FILE:LINE: what; mend`
function keys.parse(text, name, given)
  local entries = {}
  local problems = read_lines(text, name, given, function(entry) entries[#entries + 1] = entry end)
  return entries, problems
end

local function shell_word(text)
  if text:find("^[%w_./~+-]+$") then return text end
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

local function how_to_fill(path) return "add one with `cat ~/.ssh/id_ed25519.pub >> " .. shell_word(path) .. "`" end

-- The text of the file. Or nil, message, name.
local function read(path)
  local file, message, errno = io.open(path, "rb")
  if not file then
    if errno == 2 then return nil, ("%s does not exist, so nobody could log in; %s"):format(path, how_to_fill(path)), "ENOENT" end
    return nil, message, "EACCES"
  end
  local text, why = file:read("a")
  file:close()
  if not text then return nil, ("%s: %s"):format(path, why), "EACCES" end
  return text
end

-- Adds an entry's key to the set. What is wrong with it, or nil.
local function admit(set, entry, given)
  local digest, what = given.fingerprint(entry.type, entry.blob)
  if not digest then return ("%s; copy the whole line from the .pub file again, or make a new key"):format(what) end
  if set[digest] then return ("the same key as in line %d, which counts; remove one of them"):format(set[digest].line) end
  set[digest] = { name = entry.comment, type = entry.type, line = entry.line, options = entry.options }
end

local function no_key(path, problems)
  if #problems == 0 then return ("%s holds no key, so nobody could log in; %s"):format(path, how_to_fill(path)), "ENOKEY" end
  local more = #problems > 1 and (" (and %d more like it)"):format(#problems - 1) or ""
  return ("no key can be used, so nobody could log in: %s%s"):format(problems[1], more), "ENOKEY"
end

--- Reads an authorized_keys file.
-- @tparam string path
-- @tparam table given `fingerprint`: called with a type and a base64 text: `"SHA256:…"`, or nil and a message where the key is not sound;
-- `address_bytes`: see `korv.keyoptions`
-- @tparam[opt=false] boolean may_be_empty whether a file without a key that can log in will do
-- @treturn ?table fingerprints to `{ name, type, line, options }` (`name` is the key's comment), and under `problems` the list of
-- those. nil where it cannot be read, or not one key can log in
-- @treturn ?string message
-- @treturn ?string name: `ENOENT`, `EACCES`, or `ENOKEY` (there is no key, or none that can be used)
function keys.load(path, given, may_be_empty)
  local text, message, name = read(path)
  if not text then return nil, message, name end
  local set = {}
  local problems = read_lines(text, path, given, function(entry) return admit(set, entry, given) end)
  if next(set) == nil and not may_be_empty then return nil, no_key(path, problems) end
  set.problems = problems
  return set
end

return keys

--- Who may log in: reads a file in the format of OpenSSH's authorized_keys (sshd(8)) and says which keys are let in, and why the
-- others are not. A line that cannot be honoured in full refuses its key. Knows no session and no cryptography: whether a key is
-- sound, and its fingerprint, it asks.
-- @module korv.keys

local keyoptions = require "korv.keyoptions"
local uv = require "luv"

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

local RSA_BYTES = 256 -- 2048 bits

local function is_short_rsa(bytes)
  local ok, _, _, modulus = pcall(string.unpack, ">s4s4s4", bytes)
  if not ok then return false end -- whoever is asked whether it is sound will say so
  modulus = modulus:gsub("^\0+", "")
  return #modulus < RSA_BYTES or #modulus == RSA_BYTES and modulus:byte() < 128
end

-- What is wrong with a key's base64 text; nil where its shape is right, it begins with its type, and it is long enough.
local function misshapen(type, blob)
  if #blob % 4 ~= 0 or not blob:find("^[A-Za-z0-9+/]+=?=?$") then
    return "the key is no base64 text, or a part of it is missing; copy the whole line from the .pub file again"
  end
  local expected = string.pack(">s4", type)
  local groups = (#expected + 2) // 3
  if decode_base64(blob:sub(1, 4 * groups)):sub(1, #expected) ~= expected then
    return ("the key is not of the type that is written, %s; copy the whole line from the .pub file again"):format(type)
  end
  if type == "ssh-rsa" and is_short_rsa(decode_base64(blob)) then
    return "an RSA key of less than 2048 bits is too weak; make a new one with `ssh-keygen -t ed25519`"
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

-- A signature tells whether somebody has touched the token, but the library under us does not tell us.
local function unseen_touch(type, options)
  if type:find "^sk%-" and not options.untouched then
    return "whether somebody touches the token is not checked here; write no-touch-required before the key if it may be used without"
  end
end

-- The entry that a line makes. Or nil and what is wrong.
local function read_line(line, given)
  local list, rest = split_options(line)
  if not list then return nil, rest end
  local type, blob, comment = rest:match("^([^ \t]+)[ \t]+([^ \t]+)[ \t]*(.-)[ \t]*$")
  if not type or not is_type(type) then return nil, "no key of a known type" .. FORMAT end
  local options, what = keyoptions.read(list, given)
  what = what or refusal(type) or misshapen(type, blob) or unseen_touch(type, options)
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
        entry.file, entry.line, entry.text = name, number, line
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
-- @treturn table a list of entries `{ type, blob, comment, options, file, line, text }`: `blob` is the base64 text, `options` what the
-- server has to honour, see `korv.keyoptions`, `text` the line itself
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

local WRITABLE = tonumber("022", 8) -- by the group or by others

-- Whoever can write the file lets in whom he likes: why it cannot be trusted, or nil.
local function mistrust(path, stat)
  if stat.type ~= "file" then return ("%s: not a file"):format(path), "EACCES" end
  if stat.mode & WRITABLE ~= 0 then
    return ("%s: others can write this file (mode %04o), and so let in whom they like; mend it with: chmod go-w %s"):format(path,
      stat.mode & 4095, shell_word(path)), "EPERM"
  end
  if stat.uid ~= 0 and stat.uid ~= uv.getuid() then
    return ("%s belongs to another user (%d), who could let in whom he likes; mend it with: chown %d %s"):format(path, stat.uid,
      uv.getuid(), shell_word(path)), "EPERM"
  end
end

-- The text of a file that is open: what is looked at is what is read, whatever its name leads to meanwhile. Or nil, message, name.
local function read_trusted(fd, path)
  local stat = assert(uv.fs_fstat(fd))
  local message, name = mistrust(path, stat)
  if message then return nil, message, name end
  local text, why = uv.fs_read(fd, stat.size, 0)
  if not text then return nil, ("%s: %s"):format(path, why), "EACCES" end
  return text
end

local READ = uv.constants.O_RDONLY | uv.constants.O_NONBLOCK -- a pipe would have us wait for who writes it

-- Or nil, message, name.
local function read(path)
  local fd, message, name = uv.fs_open(path, READ, 0)
  if not fd and name == "ENOENT" then
    return nil, ("%s does not exist, so nobody could log in; %s"):format(path, how_to_fill(path)), "ENOENT"
  end
  if not fd then return nil, message, "EACCES" end
  local text
  text, message, name = read_trusted(fd, path)
  uv.fs_close(fd)
  return text, message, name
end

local function place(entry, other)
  if entry.file == other.file then return "line " .. entry.line end
  return ("%s:%d"):format(entry.file, entry.line)
end

-- Adds an entry's key to the set. What is wrong with it, or nil.
local function admit(set, entry, given)
  local digest, what = given.fingerprint(entry.type, entry.blob)
  if not digest then return ("%s; copy the whole line from the .pub file again, or make a new key"):format(what) end
  if set[digest] then return ("the same key as in %s, which counts; remove one of them"):format(place(set[digest], entry)) end
  set[digest] = { name = entry.comment, type = entry.type, options = entry.options, file = entry.file, line = entry.line,
    text = entry.text }
end

local function no_key(paths, problems)
  if #problems == 0 then
    return ("%s holds no key, so nobody could log in; %s"):format(table.concat(paths, " + "), how_to_fill(paths[1])), "ENOKEY"
  end
  local more = #problems > 1 and (" (and %d more like it)"):format(#problems - 1) or ""
  return ("no key can be used, so nobody could log in: %s%s"):format(problems[1], more), "ENOKEY"
end

--- Reads authorized_keys files, which nobody but their owner may be able to write, and that is root or whom this process runs as.
-- @tparam {string,...} paths
-- @tparam table given `fingerprint`: called with a type and a base64 text: `"SHA256:…"`, or nil and a message where the key is not sound;
-- `address_bytes`: see `korv.keyoptions`
-- @tparam[opt=false] boolean may_be_empty whether files without a key that can log in will do
-- @treturn ?table fingerprints to `{ name, type, options, file, line, text }` (`name` is the key's comment), and under `problems` the
-- list of those. nil where one cannot be read or trusted, or not one key can log in
-- @treturn ?string message
-- @treturn ?string name: `ENOENT`, `EACCES`, `EPERM`, or `ENOKEY` (there is no key, or none that can be used)
function keys.load(paths, given, may_be_empty)
  local set, problems = {}, {}
  for _, path in ipairs(paths) do
    local text, message, name = read(path)
    if not text then return nil, message, name end
    local found = read_lines(text, path, given, function(entry) return admit(set, entry, given) end)
    table.move(found, 1, #found, #problems + 1, problems)
  end
  if next(set) == nil and not may_be_empty then return nil, no_key(paths, problems) end
  set.problems = problems
  return set
end

return keys

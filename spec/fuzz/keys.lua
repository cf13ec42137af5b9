#!/usr/bin/env lua5.4
--- Fuzzes what reads authorized_keys (korv.keys, korv.keyoptions). scripts/fuzz runs it: `keys.lua SECONDS [SEED]`.
--
-- Kept lines become others by changes at random. No error may come of one; a line that is accepted has to be one that ssh-keygen reads as
-- the same key; and its options have to be judged without an error, too. The seed is printed, and the line at fault.
local root = arg[0]:match "^(.*)/spec/fuzz/[^/]*$" or "."
local build = os.getenv "KORV_BUILD" or root .. "/build"
package.path = ("%s/lua/?.lua;%s/lua/?/init.lua;%s"):format(root, root, package.path)
package.cpath = ("%s/?.so;%s"):format(build, package.cpath)

local core = require "korv.core"
local keyoptions = require "korv.keyoptions"
local keys = require "korv.keys"
local uv = require "luv"

local GIVEN = { fingerprint = core.public_key, address_bytes = core.address_bytes }
local BATCH = 400 -- lines that ssh-keygen gets at once
local ADDRESSES = { "127.0.0.1", "10.1.2.3", "2001:db8::1", "::1", "fe80::1%eth0", "?", "" }

local seconds = tonumber(arg[1])
local seed = math.tointeger(tonumber(arg[2])) or uv.hrtime() % 1000000
local random = math.random
math.randomseed(seed)

local function fail(what, line)
  io.stderr:write(("keys: %s: %q; seed %d\n"):format(what, line, seed))
  os.exit(1)
end

-- Lines -----------------------------------------------------------------------------------------------------------------------------------

local function read_lines(folder)
  local list, scan = {}, assert(uv.fs_scandir(folder))
  for name in uv.fs_scandir_next, scan do
    for line in io.lines(folder .. "/" .. name, "L") do list[#list + 1] = line:gsub("\n$", "") end
  end
  return list
end

local kept = read_lines(root .. "/spec/corpus/keys")

local TOKENS = { " ", "\t", ",", '"', '\\"', "\\", "=", "#", "\r", "\0", "!", "*", "?", "/", "[", "]", "%", "-", ":", "..", "\xff",
  "from=", 'from="', "command=", 'command="GET /*"', "environment=", "expiry-time=", "restrict", "no-pty", "pty", "cert-authority",
  "permitopen=", "tunnel=", "ssh-ed25519", "ssh-rsa", "ssh-dss", "AAAA", "=", "==", "127.0.0.1/8", "0/0", "::/0", "1.2.3.4/33", "20300101",
  "99999999999999", "20300230", "Z", "KORV_ROLES=", "-----BEGIN OPENSSH PRIVATE KEY-----", ("a"):rep(300), ("("):rep(40), "%b()", "%f[" }

local function any(list) return list[random(#list)] end

local CHANGES = {
  function(text, at) return text:sub(1, at - 1) .. string.char(random(0, 255)) .. text:sub(at + 1) end,
  function(text, at) return text:sub(1, at - 1) .. string.char(text:byte(at) ~ 1 << random(0, 7)) .. text:sub(at + 1) end,
  function(text, at) return text:sub(1, at - 1) .. any(TOKENS) .. text:sub(at) end,
  function(text, at) return text:sub(1, at - 1) .. any(TOKENS) .. text:sub(at + random(0, 20)) end,
  function(text, at) return text:sub(1, at - 1) .. text:sub(at + random(1, 20)) end,
  function(text, at) return text:sub(1, at - 1) .. text:sub(at, at + random(0, 30)):rep(random(2, 4)) .. text:sub(at) end,
  function(text, at)
    local other = any(kept)
    return text:sub(1, at) .. other:sub(random(#other))
  end,
  function(text) return any { "restrict", "no-pty", 'from="10.0.0.0/8"', 'command="GET /a,STORE /b*"' } .. any { ",", " ", "" } .. text end,
}

-- Where the options are, if anything: most of a line is a key, and a changed key is no key.
local function position(text)
  local key = text:find("AAAA", 1, true) or 1
  return random() < 0.7 and random(key) or random(#text)
end

local function changed(line)
  for _ = 1, random(4) do
    if line == "" then return any(TOKENS) end
    line = any(CHANGES)(line, position(line))
  end
  return line
end

-- Checks ----------------------------------------------------------------------------------------------------------------------------------

local accepted = {} -- { line, fingerprint }: ssh-keygen has yet to be asked
local folder = assert(uv.fs_mkdtemp(uv.os_tmpdir() .. "/korv-fuzz-XXXXXX"))
local path = folder .. "/authorized_keys"

local function save(text)
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
end

local function fingerprints_by_ssh_keygen(lines)
  save(table.concat(lines, "\n") .. "\n")
  local list, pipe = {}, assert(io.popen("ssh-keygen -l -f '" .. path .. "' 2>/dev/null"))
  for line in pipe:lines() do list[#list + 1] = line:match "SHA256:%S+" end
  pipe:close()
  return list
end

local function is_read_alike(list)
  local lines, alike = {}, true
  for i, one in ipairs(list) do lines[i] = one.line end
  local theirs = fingerprints_by_ssh_keygen(lines)
  for i, one in ipairs(list) do alike = alike and theirs[i] == one.fingerprint end
  return alike and #theirs == #list
end

local function compare()
  local list = accepted
  accepted = {}
  if is_read_alike(list) then return end
  for _, one in ipairs(list) do
    if not is_read_alike { one } then fail("ssh-keygen does not read as the same key what is accepted", one.line) end
  end
  fail("ssh-keygen reads a line otherwise beside others", list[1].line)
end

-- ssh-keygen wants one blank between the options and the key, where sshd takes several, and stops at what may be a private key.
local function for_ssh_keygen(line, entry)
  line = line:gsub("PRIVATE KEY", "PRIVATE-KEY")
  local from, blanks = line:match("()[ \t]+()" .. entry.type:gsub("%p", "%%%0") .. "[ \t]+" .. entry.blob:gsub("%p", "%%%0"))
  return from and line:sub(1, from - 1) .. " " .. line:sub(blanks) or line
end

local function judge(entry, line)
  for _, address in ipairs(ADDRESSES) do
    local ok, problem = pcall(keyoptions.admit, entry.options, address, os.time())
    if not ok then fail("an error as a log-in was judged: " .. tostring(problem), line) end
  end
end

local function try(line)
  local ok, entries, problems = pcall(keys.parse, line, "file", GIVEN)
  if not ok then fail("an error: " .. tostring(entries), line) end
  for _, entry in ipairs(entries) do
    local fine, fingerprint = pcall(GIVEN.fingerprint, entry.type, entry.blob)
    if not fine then fail("an error of the fingerprint: " .. tostring(fingerprint), line) end
    judge(entry, line)
    if fingerprint then accepted[#accepted + 1] = { line = for_ssh_keygen(line, entry), fingerprint = fingerprint } end
  end
  if #entries + #problems > 1 + select(2, line:gsub("\n", "")) then fail("more said than there are lines", line) end
  if #accepted >= BATCH then compare() end
end

-- As a file that a server reads, from its reading to the set.
local function try_file(text)
  save(text)
  local ok, problem = pcall(keys.load, path, GIVEN, true)
  if not ok then fail("an error as a file was read: " .. tostring(problem), text) end
end

-- -----------------------------------------------------------------------------------------------------------------------------------------

print(("keys: seed %d"):format(seed))
local until_ns, count, took = uv.hrtime() + seconds * 1e9, 0, 0
while uv.hrtime() < until_ns do
  local line = changed(any(kept)):gsub("\n", " ")
  local before = #accepted
  try(line)
  if #accepted ~= before then took = took + 1 end
  if count % 1000 == 0 then try_file(line .. "\n" .. changed(any(kept)) .. "\n" .. any(kept)) end
  count = count + 1
end
compare()
os.remove(path)
uv.fs_rmdir(folder)
print(("keys: %d lines in %g s, %d of them accepted, nothing found"):format(count, seconds, took))

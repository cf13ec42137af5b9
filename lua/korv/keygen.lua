--- `korv keygen`: makes a key pair, for a client or for a server.
-- @module korv.keygen

local core = require "korv.core"
local identity = require "korv.identity"
local uv = require "luv"

local OWNER_ONLY, ALL_READ = 448, 420 -- 0700 for a folder, 0644 for a file

local NEXT_STEPS = [[

To call with it: whoever runs the server adds the public key to its authorized keys.
  cat %s.pub >> authorized_keys
  korv call -i %s HOST GET /hello
To serve with it as a host key:
  korv serve --host-key %s endpoints/
]]

-- Who made it, where, as ssh-keygen has it. A user of a container may have no name.
local function default_comment()
  local entry = uv.os_get_passwd()
  return ("%s@%s"):format(identity.user() or entry and entry.username or uv.getuid(), uv.os_gethostname())
end

local function default_file()
  local folder = identity.home ""
  if not uv.fs_stat(folder) then uv.fs_mkdir(folder, OWNER_ONLY) end
  return identity.home "id_ed25519"
end

local function write_new(path, text)
  local file, message, name = uv.fs_open(path, "wx", ALL_READ)
  if not file then return nil, message, name end
  local written, problem, code = uv.fs_write(file, text)
  uv.fs_close(file)
  if written ~= #text then return nil, problem or "the disk is full", code end
  return true
end

local function replaced(path)
  return ("%s exists already, and keys are never replaced: name another file (korv keygen FILE), or move this one away"):format(path)
end

--- Makes FILE and FILE.pub, and tells about them.
-- @tparam table options `file` (default: ~/.ssh/id_ed25519), `comment` (default: the user and the host)
-- @treturn ?boolean true
-- @treturn ?string message
return function(options)
  local path = options.file or default_file()
  local comment = options.comment or default_comment()
  if uv.fs_lstat(path .. ".pub") then return nil, replaced(path .. ".pub") end
  local key, message, name = core.make_key(path, comment)
  if not key then return nil, name == "EEXIST" and replaced(path) or message end
  local fingerprint, type = key:describe()
  local ok
  ok, message = write_new(path .. ".pub", ("%s %s %s\n"):format(type, key:public(), comment))
  if not ok then return nil, ("made %s, but not its public half: %s; make that with: ssh-keygen -y -f %s"):format(path, message, path) end
  print(("%s: a new private key, for its owner only"):format(path))
  print(("%s.pub: its public half, which others may see, with the comment %s"):format(path, comment))
  print(("%s (%s)"):format(fingerprint, type))
  io.stdout:write((NEXT_STEPS:format(path, path, path)))
  return true
end

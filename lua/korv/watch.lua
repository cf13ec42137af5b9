--- Notices that files have changed: scripts, and keys. Watches the folders that they are in, since editors, git and configuration
-- managers put a new file in the place of the old one. Knows nothing of what is done about a change.
-- @module korv.watch

local log = require "korv.log"
local uv = require "luv"

local Watch = {}
Watch.__index = Watch

local SETTLED_MS, LATEST_MS = 50, 1000 -- without a further event; after the first one
local LOOK_MS = 1000
local MOST_LINKS = 40 -- that lead from one to the next; the kernel follows no more

-- A folder's own end is told under the last part of the path that it was watched by: this one is no name of a file.
local SELF = "."

local watch = {}

--- A watch; it watches nothing yet.
-- @tparam function on_change called with `scripts` or `keys`, once the changes have settled
-- @treturn Watch
function watch.new(on_change)
  return setmetatable({ on_change = on_change, folders = {}, settling = {}, warned = {} }, Watch)
end

-- Settling --------------------------------------------------------------------------------------------------------------------------

local function settled(self, what)
  self.settling[what].first = nil
  self.on_change(what)
end

local function changed(self, what)
  local settling = self.settling[what]
  if not settling then
    settling = { timer = uv.new_timer() }
    settling.timer:unref()
    self.settling[what] = settling
  end
  settling.first = settling.first or uv.now()
  local left = settling.first + LATEST_MS - uv.now()
  settling.timer:start(math.max(math.min(SETTLED_MS, left), 0), 0, function() settled(self, what) end)
end

-- Folders ---------------------------------------------------------------------------------------------------------------------------

local function matches(item, name)
  if item.names then return item.names[name] end
  return name:find "^[^.].*%.lua$"
end

local function let_go(folder)
  if folder.handle then folder.handle:close() end
  folder.handle, folder.identity = nil, nil
end

-- Which folder a path leads to now; nil: none.
local function identity_of(path)
  local stat = uv.fs_stat(path)
  return stat and stat.type == "directory" and ("%d:%d"):format(stat.dev, stat.ino) or nil
end

-- The kernel has a limit of watches, and folders may be unreadable: one line each.
local function warn(self, path, message, name)
  if name == "ENOENT" or self.warned[name] then return end
  self.warned[name] = true
  log.warn("changes in %s are not noticed (%s); SIGHUP reloads all the same", path, message)
end

local look

local function on_event(self, folder, name, events)
  if name == SELF and events.rename then
    let_go(folder)
    return look(self, folder)
  end
  for _, item in ipairs(folder.items) do
    if name and matches(item, name) then changed(self, item.what) end
  end
end

local function begin(self, folder)
  local handle = uv.new_fs_event()
  local ok, message, name = handle:start(folder.path .. "/" .. SELF, {}, function(err, file, events)
    if not err and folder.handle == handle then on_event(self, folder, file, events) end
  end)
  if not ok then
    handle:close()
    return warn(self, folder.path, message, name)
  end
  handle:unref()
  folder.handle = handle
end

-- Watches what the path leads to now, where that is not watched yet.
function look(self, folder)
  local identity = identity_of(folder.path)
  if identity and identity == folder.identity then return end
  let_go(folder)
  if identity then begin(self, folder) end
  if not folder.handle then return end
  folder.identity = identity
  if folder.is_known then
    for _, item in ipairs(folder.items) do changed(self, item.what) end
  end
end

-- Folders that are missing, and those whose path has come to lead elsewhere, as that of a release behind a symbolic link.
local function look_again(self)
  for _, folder in pairs(self.folders) do look(self, folder) end
end

local function by_folder(list)
  local found = {}
  for _, item in ipairs(list) do
    found[item.folder] = found[item.folder] or {}
    table.insert(found[item.folder], item)
  end
  return found
end

local function look_each_second(self)
  if self.looking or not next(self.folders) then return end
  self.looking = uv.new_timer()
  self.looking:start(LOOK_MS, LOOK_MS, function() look_again(self) end)
  self.looking:unref()
end

local function add_name(list, path, what)
  local folder, name = path:match "^(.*)/([^/]+)$"
  list[#list + 1] = { folder = folder or ".", names = { [name or path] = true }, what = what }
end

--- Adds a file to a list for `Watch:set`, and where it is a symbolic link, each step of the way that it leads: any of them may change.
-- @tparam table list
-- @tparam string path
-- @tparam string what `scripts` or `keys`
function watch.add_file(list, path, what)
  for _ = 0, MOST_LINKS do
    add_name(list, path, what)
    local target = uv.fs_readlink(path)
    if not target then return end
    path = target:sub(1, 1) == "/" and target or (path:match "^.*/" or "") .. target
  end
end

--- Sets what is watched. What was watched before goes on without a gap where it is in the new list, too.
-- @tparam {table,...} list of `folder`, `names` (a set; nil: any *.lua that is no dotfile) and `what`: `scripts` or `keys`
function Watch:set(list)
  local wanted = by_folder(list)
  for path, folder in pairs(self.folders) do
    if not wanted[path] then
      let_go(folder)
      self.folders[path] = nil
    end
  end
  for path, items in pairs(wanted) do
    local folder = self.folders[path] or { path = path }
    folder.items, self.folders[path] = items, folder
    look(self, folder)
    folder.is_known = true
  end
  look_each_second(self)
end

--- Ends it. The loop has to turn once more before the program ends.
function Watch:close()
  self:set {}
  if self.looking then self.looking:close() end
  for _, settling in pairs(self.settling) do settling.timer:close() end
  self.looking, self.settling = nil, {}
end

return watch

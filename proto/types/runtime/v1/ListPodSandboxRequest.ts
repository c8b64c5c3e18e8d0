// Original file: proto/cri.proto


export interface ListPodSandboxRequest {
}

export interface ListPodSandboxRequest__Output {
}

// Original file: proto/containerd/namespaces.proto


export interface ListNamespacesRequest {
}

export interface ListNamespacesRequest__Output {
}
